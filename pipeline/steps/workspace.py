"""Find artifacts in a root, and make those that are missing, one run at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import posixpath
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import MustError, Stopped, TakenOver
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
    contents,
    dump_json,
    parse_manifest,
)
from pipeline.steps.config_hash import hash_json, masked, without_key
from pipeline.steps.runtime import Runtime
from pipeline.storage.lock import LOCKS, IsHeld, OnWait, hold_lock
from pipeline.storage.path import StoragePath
from pipeline.storage.process_id import ProcessId
from pipeline.storage.root import Root, in_parallel
from pipeline.storage.shortage import explain_shortage


class Workspace:
    """The artifacts of a root."""

    def __init__(self, root: Root) -> None:
        self.root = root

    def path(self, step: Step, fingerprint: str) -> str:
        """Return the folder of an artifact, relative to the root."""
        return f"artifacts/{step.name}/{fingerprint}"

    def open(self, name: str, fingerprint: str) -> Artifact:
        """Open the artifact of the step `name` with this fingerprint. Raises DataError if it is not there."""
        path = f"artifacts/{name}/{fingerprint}"
        manifest = self.root / f"{path}/{MANIFEST}"
        return Artifact(self.root, path, parse_manifest(manifest.read(), str(manifest)))

    def find(self, step: Step, fingerprint: str) -> Artifact | None:
        """Return the artifact if it is complete: its manifest is there, and every file with its size."""
        path = self.path(step, fingerprint)
        manifest = self.root / f"{path}/{MANIFEST}"
        text = manifest.read_if_exists()
        if text is None:
            return None
        artifact = Artifact(self.root, path, parse_manifest(text, str(manifest)))
        return artifact if artifact.is_whole() else None

    def get_or_make(self, step: Step, inputs: Inputs) -> tuple[Artifact, bool]:
        """Return the artifact of a step, and whether this call made it.

        Of runs that ask at the same time, one makes it and the others wait; so does one that slept while another took
        over. Processes that train together can't wait, as they wait for each other: they raise Busy, or Stopped.
        """
        while True:
            runtime = inputs.runtime.with_own_stop()
            try:
                return self._get_or_make(step, dataclasses.replace(inputs, runtime=runtime))
            except Stopped as error:
                was_taken_over = isinstance(error, TakenOver) or runtime.stop.is_set()
                if inputs.runtime.stop.is_set() or not was_taken_over or ranks.count() > 1:
                    raise
            inputs.runtime.progress(step.name, 0.0, "another run took over while this one slept")

    def _get_or_make(self, step: Step, inputs: Inputs) -> tuple[Artifact, bool]:
        fingerprint = step.fingerprint(inputs.artifacts)
        lock, runtime = self.locks / f"{step.name}/{fingerprint}", inputs.runtime
        together = ranks.count() > 1
        with hold_lock(lock, busy if together else waiting(step.name, runtime), on_lost=runtime.stop.set) as is_held:
            found = None if inputs.force else self.find(step, fingerprint)
            if found and together:  # made since the plan, which the other processes have begun to carry out
                raise Busy(f"Another run has just made {step.name}: torchrun has to be started again to reuse it.")
            if found:
                return found, False
            try:
                return self.make(step, inputs, is_held), True
            except Exception as error:
                held = True
                with contextlib.suppress(MustError):  # the storage does not answer: it may be why the step failed
                    held = is_held()
                if held:
                    raise
                raise _taken_over(step.name) from error  # the other run may have removed what this one needed

    def take_part(self, step: Step, inputs: Inputs) -> None:
        """Run the step in a process that trains together with the first one, which makes the artifact."""
        fingerprint = step.fingerprint(inputs.artifacts)
        step.function()(step.config, inputs, self.root.local_path(self.path(step, fingerprint)))

    @property
    def locks(self) -> StoragePath:
        """The folder of locks, which tell what runs are working on."""
        return self.root / LOCKS

    def make(self, step: Step, inputs: Inputs, is_held: IsHeld = lambda: True) -> Artifact:
        """Run the step in its folder and seal it.

        `work` and `log` of an unfinished attempt are kept for the step to resume from; its other files are deleted
        first. Raises TakenOver if `is_held` returns False: another run has taken the lock.
        """
        with explain_shortage(step.name, self.root.local_path()):
            return self._make(step, inputs, is_held)

    def _make(self, step: Step, inputs: Inputs, is_held: IsHeld) -> Artifact:
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
            "section": list(step.section),
            "step": step.name,
            "schema": SCHEMA_VERSION,
            "version": step.kind.version,
            "fingerprint": fingerprint,
            "config": masked(step.config),
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
        _check_lock(step.name, is_held)
        self.root.publish_all(path, manifest["files"], inherited=inherited.keys())
        _check_lock(step.name, is_held)
        (self.root / f"{path}/{MANIFEST}").write(dump_json(manifest).encode())
        # last, so that an attempt that is killed before can resume from `work`
        self.root.cleanup(path, {*manifest["files"], MANIFEST}, WORK)
        return Artifact(self.root, path, manifest)

    def newest(self, name: str) -> Artifact | None:
        """Return the newest artifact of the step `name`, whatever its fingerprint."""
        return next(self._sealed(name), None)

    def _sealed(self, name: str) -> Iterator[Artifact]:
        """Yield the artifacts of the step `name`, the newest first."""
        manifests = [folder.child(MANIFEST) for folder in (self.root / f"artifacts/{name}").folders()]
        times = in_parallel(StoragePath.modified, manifests)
        sealed = [(when, place.parent.name) for when, place in zip(times, manifests, strict=True) if when is not None]
        for _, fingerprint in sorted(sealed, reverse=True):
            yield self.open(name, fingerprint)

    def previous(self, step: Step, inputs: Inputs) -> Artifact | None:
        """Return the newest artifact, other than its own, that differs in the step's incremental keys alone."""
        keys = step.kind.incremental_keys
        if inputs.force or keys is None:
            return None
        own = step.fingerprint(inputs.artifacts)
        wanted = _base(step.kind.name, step.kind.version, step.config, keys)
        for made in self._sealed(step.name):
            base = _base(made.kind, made.manifest["version"], made.manifest["config"], keys)
            if made.fingerprint != own and base == wanted and made.is_whole():
                return made
        return None

    def _inherit(self, names: Mapping[str, str], previous: Artifact | None, path: str) -> dict[str, Any]:
        """Link files of the previous artifact into the folder, and return their sizes and hashes from its manifest."""
        if not names:
            return {}
        assert previous is not None, "a step inherits files of `inputs.previous`"
        self.root.inherit({f"{previous.path}/{earlier}": f"{path}/{name}" for name, earlier in names.items()})
        return {name: previous.manifest["files"][earlier] for name, earlier in names.items()}


def _base(kind: str, version: int, config: Mapping[str, Any], incremental_keys: tuple[str, ...]) -> str:
    """Return a hash of what an artifact and one that goes on from it have in common."""
    return hash_json([SCHEMA_VERSION, kind, version, masked(functools.reduce(without_key, incremental_keys, config))])


def _check_lock(step: str, is_held: IsHeld) -> None:
    """Raise TakenOver if another run has the lock: an artifact must not have files of two attempts."""
    if not is_held():
        raise _taken_over(step)


def _taken_over(step: str) -> TakenOver:
    return TakenOver(
        f"{step}: another run took over while this one slept or did not reach the storage. Run the same command "
        "again: it waits for that run, or finds what it made."
    )


class Busy(MustError):
    """Another run makes the artifact that processes were to make together; they can't wait for it."""


def busy(holder: ProcessId) -> None:
    """Raise Busy."""
    raise Busy(f"Another run, {holder}, makes this just now: try later.")


def waiting(step: str, runtime: Runtime) -> OnWait:
    """Return what a step does while another run holds its lock: report it, and raise Stopped if asked to stop."""

    def report(holder: ProcessId) -> None:
        runtime.check_stop(step)
        runtime.progress(step, 0.0, f"waits for {holder}")

    return report
