"""A root as steps see it: artifacts are found in it, and made, by one run at a time."""

from __future__ import annotations

import dataclasses
import functools
import posixpath
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import MustError, TakenOver
from pipeline.steps import ranks
from pipeline.steps.artifact import (
    EXTERNAL_FILES,
    INHERITED_FILES,
    LOG,
    MANIFEST,
    SCHEMA_VERSION,
    WORK,
    Artifact,
    Inputs,
    Step,
    as_json,
    contents,
    hash_json,
    parse_manifest,
)
from pipeline.steps.runtime import Runtime
from pipeline.storage.errors import explain_full_disk
from pipeline.storage.lock import IsHeld, OnWait, hold_lock
from pipeline.storage.path import StoragePath
from pipeline.storage.process_id import ProcessId
from pipeline.storage.root import Root, in_parallel


class Workspace:
    """A root: where artifacts are found and made."""

    def __init__(self, root: Root) -> None:
        self.root = root

    def path(self, step: Step, fingerprint: str) -> str:
        """The folder of an artifact in the root."""
        return f"artifacts/{step.name}/{fingerprint}"

    def open(self, name: str, fingerprint: str) -> Artifact:
        """The artifact of the step `name` with this fingerprint. DataError if it is not there."""
        path = f"artifacts/{name}/{fingerprint}"
        manifest = self.root / f"{path}/{MANIFEST}"
        return Artifact(self.root, path, parse_manifest(manifest.read(), str(manifest)))

    def find(self, step: Step, fingerprint: str) -> Artifact | None:
        """The artifact, if it is there and whole: the manifest present and every file there with its size."""
        path = self.path(step, fingerprint)
        manifest = self.root / f"{path}/{MANIFEST}"
        text = manifest.read_if_exists()
        if text is None:
            return None
        artifact = Artifact(self.root, path, parse_manifest(text, str(manifest)))
        return artifact if artifact.is_whole() else None

    def get_or_make(self, step: Step, inputs: Inputs) -> tuple[Artifact, bool]:
        """The artifact of a step, and whether this call made it. Of runs that ask at the same time, one makes it and
        the others wait for it.
        """
        fingerprint = step.fingerprint(inputs.artifacts)
        claim, runtime = self.claims / f"{step.name}/{fingerprint}", inputs.runtime
        together = ranks.count() > 1
        with hold_lock(claim, busy if together else waiting(step.name, runtime), on_lost=runtime.stop.set) as holds:
            found = None if inputs.force else self.find(step, fingerprint)
            if found and together:
                busy(ProcessId.current())
            return (found, False) if found else (self.make(step, inputs, holds), True)

    def take_part(self, step: Step, inputs: Inputs) -> None:
        """What the others do of several processes that train together, while the first obtains the artifact."""
        fingerprint = step.fingerprint(inputs.artifacts)
        step.function()(step.config, inputs, self.root.local_path(self.path(step, fingerprint)))

    @property
    def claims(self) -> StoragePath:
        """Where runs say what they are at work on."""
        return self.root / "claims"

    def make(self, step: Step, inputs: Inputs, holds: IsHeld = lambda: True) -> Artifact:
        """Run the step in its folder and seal it. What an unfinished attempt left in `work` and `log` is the step's to
        go on from; anything else it left is gone first. Raises TakenOver where `holds` says that it is another run's by
        now.
        """
        with explain_full_disk(step.name, self.root.local_path()):
            return self._make(step, inputs, holds)

    def _make(self, step: Step, inputs: Inputs, holds: IsHeld) -> Artifact:
        fingerprint = step.fingerprint(inputs.artifacts)
        path = self.path(step, fingerprint)
        inputs = dataclasses.replace(inputs, previous=self.previous(step, inputs))
        (self.root / f"{path}/{MANIFEST}").remove()  # first: from here on the folder is unfinished
        folder = self.root.prepare_folder(path, kept=() if inputs.force else (WORK, LOG))
        began = time.time()
        counts = dict(step.function()(step.config, inputs, folder))
        inherited = self._inherit(counts.pop(INHERITED_FILES, {}), inputs.previous, path)
        manifest = {
            "kind": step.kind.name,
            "section": step.section,
            "step": step.name,
            "schema": SCHEMA_VERSION,
            "version": step.kind.version,
            "fingerprint": fingerprint,
            "config": dict(step.config),
            "inputs": {
                name: {"digest": made.digest, "path": posixpath.basename(made.path)}
                for name, made in inputs.artifacts.items()
            },
            EXTERNAL_FILES: counts.pop(EXTERNAL_FILES, {}),
            "counts": counts,
            "began": began,
            "software": inputs.runtime.software(),
            **contents(folder, inherited),
            "seconds": time.time() - began,
        }
        _check_claim(step.name, holds)
        self.root.publish_all(path, manifest["files"], inherited=inherited.keys())
        _check_claim(step.name, holds)
        (self.root / f"{path}/{MANIFEST}").write(as_json(manifest).encode())
        # last, as `work` can be gone on from until there is nothing left to do
        self.root.cleanup(path, {*manifest["files"], MANIFEST}, WORK)
        return Artifact(self.root, path, manifest)

    def newest(self, name: str) -> Artifact | None:
        """The artifact of step `name` that was sealed last, whatever its fingerprint."""
        return next(self._sealed(name), None)

    def _sealed(self, name: str) -> Iterator[Artifact]:
        """The artifacts of step `name`, the one sealed last first."""
        manifests = [folder.child(MANIFEST) for folder in (self.root / f"artifacts/{name}").folders()]
        times = in_parallel(StoragePath.modified, manifests)
        sealed = [(when, place.parent.name) for when, place in zip(times, manifests, strict=True) if when is not None]
        for _, fingerprint in sorted(sealed, reverse=True):
            yield self.open(name, fingerprint)

    def previous(self, step: Step, inputs: Inputs) -> Artifact | None:
        """What the step can grow from; not what is in its own folder, which is made again."""
        if inputs.force or not step.kind.incremental_keys:
            return None
        mine = step.fingerprint(inputs.artifacts)
        sealed = (made for made in self._sealed(step.name) if made.fingerprint != mine)
        keys = step.kind.incremental_keys
        wanted = _base(step.kind.name, step.kind.version, step.config, keys)
        for made in sealed:
            about = made.manifest
            if _base(about["kind"], about["version"], about["config"], keys) == wanted and made.is_whole():
                return made
        return None

    def _inherit(self, names: Mapping[str, str], previous: Artifact | None, path: str) -> dict[str, Any]:
        """Put files of the artifact before into the folder; their sizes and hashes are those of its manifest."""
        if not names:
            return {}
        assert previous is not None, "a step takes over what it was given"
        self.root.inherit({f"{previous.path}/{earlier}": f"{path}/{name}" for name, earlier in names.items()})
        return {name: previous.manifest["files"][earlier] for name, earlier in names.items()}


def _base(kind: str, version: int, config: Mapping[str, Any], incremental_keys: tuple[str, ...]) -> str:
    """What an artifact and one that is grown from it have in common."""
    return hash_json([SCHEMA_VERSION, kind, version, functools.reduce(_without, incremental_keys, config)])


def _without(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A configuration without a key, which may lie in a section: `source.path`."""
    first, _, rest = key.partition(".")
    left = {name: value for name, value in config.items() if name != first}
    return {**left, first: _without(config[first], rest)} if rest and first in config else left


def _check_claim(step: str, holds: IsHeld) -> None:
    """Raise TakenOver if the step is another run's by now: what that one seals must not be of two attempts."""
    if not holds():
        raise TakenOver(
            f"{step}: another run took over while this one slept or did not reach the storage. Run the same command "
            "again: it waits for that run, or finds what it made."
        )


class Busy(MustError):
    """Another run makes what several processes together were to make: they can't wait, as they wait for each other."""


def busy(holder: ProcessId) -> None:
    """Raise Busy."""
    raise Busy(f"Another run, {holder}, makes this just now: try later.")


def waiting(step: str, runtime: Runtime) -> OnWait:
    """What a step does while another run has its claim: it says so, and listens for a stop."""

    def tell(holder: ProcessId) -> None:
        runtime.check_stop(step)
        runtime.progress(step, 0.0, f"waits for {holder}")

    return tell
