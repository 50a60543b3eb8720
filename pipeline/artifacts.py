"""Steps and what they leave behind. Disk is the one memory of what is done.

An artifact is a folder `<root>/artifacts/<step>/<fingerprint>/` whose `manifest.json` is written last, by rename:
present means whole. The fingerprint hashes the step's kind and version, the configuration that can change its
result, and the digests of its inputs. A digest hashes an artifact's files, so a step that ran again and came to the
same result changes nothing further down.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import ranks
from pipeline.alive import Process
from pipeline.claims import Told, claimed
from pipeline.errors import DataError, MustError
from pipeline.places import Place
from pipeline.runtime import Runtime

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
WORK, LOG = "work", "log"
"""Subfolders of an artifact: `work` is scratch, gone when it is sealed; `log` is kept but is not part of the digest."""

ELSEWHERE = "elsewhere"
"""A key of what a step returns beside its counts: its files outside its folder, {path in the root: {size, sha256}}."""

ADOPTED = "adopted"
"""A key of what a step returns beside its counts: files that it takes over from the artifact before it as they are,
{path in its folder: path in that artifact}."""

StepFunction = Callable[[Mapping[str, Any], "Inputs", Path], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Step:
    """A node of the DAG: `run` names the function "module:function" that is called as `(config, inputs, out)`.

    `config` is JSON; what cannot change the result (device, workers, runner) is not in it. `inputs` are step names.
    """

    name: str
    run: str
    config: Mapping[str, Any]
    inputs: tuple[str, ...] = ()
    version: int = 1
    trains: bool = False
    """Whether it trains a network: several processes may then share its work."""
    parts: str = ""
    """Of a step whose work can be done in parts, by any process that reaches the root, before it runs: the module with
    `left(config, inputs)`, the parts that are still to do, and `work(config, inputs, part)`, which does one. Parts and
    what the work returns are JSON.
    """
    grows: tuple[str, ...] = ()
    """For a step that need not do everything anew: the keys of its configuration (`files`, `source.path`) in which the
    artifact that it goes on from may differ.
    """

    def function(self) -> StepFunction:
        module, _, attribute = self.run.partition(":")
        function: StepFunction = getattr(importlib.import_module(module), attribute)
        return function


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A sealed folder and its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def digest(self) -> str:
        digest: str = self.manifest["digest"]
        return digest

    @property
    def counts(self) -> Mapping[str, Any]:
        counts: Mapping[str, Any] = self.manifest["counts"]
        return counts

    def files(self) -> Iterator[tuple[Path, Mapping[str, Any]]]:
        """Every file of the artifact, in its folder and elsewhere in the root, with {size, sha256}."""
        root = self.path.parents[2]
        for name, facts in self.manifest["files"].items():
            yield self.path / name, facts
        for name, facts in self.manifest.get(ELSEWHERE, {}).items():
            yield root / name, facts

    def sha256(self, file: str) -> str:
        """The hash of one of the artifact's files, by its path in the artifact."""
        sha256: str = self.manifest["files"][file]["sha256"]
        return sha256


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The artifacts a step reads, by step name, and the machine it runs on."""

    artifacts: Mapping[str, Artifact]
    runtime: Runtime
    anew: bool = False
    """Whether the step is to make everything again, and go on from nothing that an earlier attempt left."""
    parts: Sequence[Mapping[str, Any]] = ()
    """What the work on the step's parts returned, where that was done before."""
    before: Artifact | None = None
    """What a step that `grows` can go on from, if there is any: the newest whole artifact of the same step and version
    whose configuration is the same but for those keys. `Workspace.make` finds it.
    """

    def __getitem__(self, step: str) -> Artifact:
        return self.artifacts[step]

    def of_kind(self, kind: str) -> dict[str, Artifact]:
        """The inputs called `<kind>.<name>`, by name, in order."""
        prefix = f"{kind}."
        return {name[len(prefix) :]: made for name, made in self.artifacts.items() if name.startswith(prefix)}


def hash_json(value: Any) -> str:
    """sha256 (hex) of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 (hex) of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(step: Step, digests: Mapping[str, str]) -> str:
    """First 16 hex digits of what addresses the step's result, given the digests of its inputs by step name."""
    inputs = {name: digests[name] for name in step.inputs}
    return hash_json([SCHEMA_VERSION, step.run, step.version, dict(step.config), inputs])[:16]


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, readable by people, whole or not at all."""
    write_atomically(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; DataError names the file if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}).") from error


class Workspace:
    """A root folder: where artifacts are found and made."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, step: Step, mark: str) -> Path:
        return self.root / "artifacts" / step.name / mark

    def open(self, name: str, mark: str) -> Artifact:
        """The artifact of the step `name` with this fingerprint. DataError if it is not there."""
        folder = self.root / "artifacts" / name / mark
        return Artifact(folder, read_json(folder / MANIFEST))

    def find(self, step: Step, mark: str) -> Artifact | None:
        """The artifact, if it is there and whole: the manifest present and every file there with its size."""
        folder = self.folder(step, mark)
        if not (folder / MANIFEST).exists():
            return None
        artifact = Artifact(folder, read_json(folder / MANIFEST))
        return artifact if is_whole(artifact) else None

    def obtain(self, step: Step, inputs: Inputs) -> tuple[Artifact, bool]:
        """The artifact of a step, and whether this call made it. Of runs that ask at the same time, one makes it and
        the others wait for it.
        """
        mark = fingerprint(step, {name: made.digest for name, made in inputs.artifacts.items()})
        claim, runtime = self.claims / step.name / mark, inputs.runtime
        together = ranks.count() > 1
        with claimed(claim, busy if together else waiting(step.name, runtime), lost=runtime.stop.set):
            found = None if inputs.anew else self.find(step, mark)
            if found and together:
                busy(Process.this())
            return (found, False) if found else (self.make(step, inputs), True)

    def take_part(self, step: Step, inputs: Inputs) -> None:
        """What the others do of several processes that train together, while the first obtains the artifact."""
        mark = fingerprint(step, {name: made.digest for name, made in inputs.artifacts.items()})
        step.function()(step.config, inputs, self.folder(step, mark))

    @property
    def claims(self) -> Place:
        """Where runs say what they are at work on."""
        return Place.of(str(self.root)) / "claims"

    def make(self, step: Step, inputs: Inputs) -> Artifact:
        """Run the step in its folder and seal it. What an unfinished attempt left in `work` and `log` is the step's to
        go on from; anything else it left is gone first.
        """
        mark = fingerprint(step, {name: made.digest for name, made in inputs.artifacts.items()})
        folder = self.folder(step, mark)
        folder.mkdir(parents=True, exist_ok=True)
        inputs = dataclasses.replace(inputs, before=None if inputs.anew else self._before(step, folder))
        _clear(folder, () if inputs.anew else (WORK, LOG))
        began = time.time()
        try:
            counts = dict(step.function()(step.config, inputs, folder))
            adopted = _adopt(counts.pop(ADOPTED, {}), inputs.before, folder)
        except Exception as error:
            if _is_disk_full(error):
                raise DataError(
                    f"{step.name}: the disk that holds {self.root} is full. What is whole is kept: free some space "
                    "and run the same command again."
                ) from error
            raise
        contents = _contents(folder, adopted)  # it takes long where there is much, and `work` can still be gone on from
        shutil.rmtree(folder / WORK, ignore_errors=True)
        manifest = {
            "kind": step.run,
            "step": step.name,
            "schema": SCHEMA_VERSION,
            "version": step.version,
            "fingerprint": mark,
            "config": dict(step.config),
            "inputs": {
                name: {"digest": made.digest, "path": made.path.name} for name, made in inputs.artifacts.items()
            },
            ELSEWHERE: counts.pop(ELSEWHERE, {}),
            "counts": counts,
            "began": began,
            "seconds": time.time() - began,
            "software": inputs.runtime.software(),
            **contents,
        }
        write_json(folder / MANIFEST, manifest)
        return Artifact(folder, manifest)

    def newest(self, name: str) -> Artifact | None:
        """The artifact of step `name` that was sealed last, whatever its fingerprint."""
        return next(self._sealed(name), None)

    def _sealed(self, name: str) -> Iterator[Artifact]:
        """The artifacts of step `name`, the one sealed last first."""
        found = (self.root / "artifacts" / name).glob(f"*/{MANIFEST}")
        for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            yield Artifact(path.parent, read_json(path))

    def _before(self, step: Step, folder: Path) -> Artifact | None:
        """What the step can grow from; not what is in its own folder, which is made again."""
        if not step.grows:
            return None
        sealed = (made for made in self._sealed(step.name) if made.path != folder)
        wanted = _base(step.run, step.version, step.config, step.grows)
        for made in sealed:
            about = made.manifest
            if _base(about["kind"], about["version"], about["config"], step.grows) == wanted and is_whole(made):
                return made
        return None


def _base(run: str, version: int, config: Mapping[str, Any], grows: tuple[str, ...]) -> str:
    """What an artifact and one that is grown from it have in common."""
    return hash_json([SCHEMA_VERSION, run, version, functools.reduce(_without, grows, config)])


def _without(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A configuration without a key, which may lie in a section: `source.path`."""
    first, _, rest = key.partition(".")
    left = {name: value for name, value in config.items() if name != first}
    return {**left, first: _without(config[first], rest)} if rest and first in config else left


def is_whole(artifact: Artifact) -> bool:
    """Whether every file of an artifact is there with its size."""
    try:
        return all(os.stat(file).st_size == facts["size"] for file, facts in artifact.files())
    except OSError:
        return False


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or where the file system has no such thing a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _adopt(names: Mapping[str, str], before: Artifact | None, folder: Path) -> dict[str, Any]:
    """Put files of the artifact before into the folder; their sizes and hashes are those of its manifest."""
    files = {}
    for name, earlier in names.items():
        assert before is not None, "a step takes over what it was given"
        link(before.path / earlier, folder / name)
        files[name] = before.manifest["files"][earlier]
    return files


class Busy(MustError):
    """Another run makes what several processes together were to make: they can't wait, as they wait for each other."""


def busy(holder: Process) -> None:
    """Raise Busy."""
    raise Busy(f"Another run, process {holder.number} on {holder.machine.split()[0]}, makes this just now: try later.")


def waiting(step: str, runtime: Runtime) -> Told:
    """What a step does while another run has its claim: it says so, and listens for a stop."""

    def tell(holder: Process) -> None:
        runtime.check_stop(step)
        runtime.progress(step, 0.0, f"waits for process {holder.number} on {holder.machine.split()[0]}")

    return tell


def _is_disk_full(error: Exception) -> bool:
    """Whether the system said so; libraries that write through other languages tell it in words alone."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def _clear(folder: Path, without: Sequence[str]) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)  # first: from here on the folder is unfinished
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name not in without:
            shutil.rmtree(entry)
        elif entry.is_file():
            entry.unlink()


def _contents(folder: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Size and hash of every file but for scratch, and the digest; the files in `known` are not read."""
    names = (str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file())
    made = (name for name in names if name != MANIFEST and not name.startswith(f"{WORK}/") and not _is_part(name))
    files = {name: known.get(name) or _facts(folder / name) for name in made}
    kept = {name: facts["sha256"] for name, facts in files.items() if not name.startswith(f"{LOG}/")}
    return {"files": files, "digest": hash_json(kept)}


def _is_part(name: str) -> bool:
    return name.endswith(".part")


def _facts(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": hash_file(path)}


def verify(artifact: Artifact) -> Iterator[str]:
    """The files of an artifact that are not what its manifest says, each with what is wrong. Reads every byte."""
    for file, facts in artifact.files():
        if not file.exists():
            yield f"{file}: missing"
        elif hash_file(file) != facts["sha256"]:
            yield f"{file}: its bytes changed since it was made"


def require(artifact: Artifact | None, step: str) -> Artifact:
    """The artifact, or a DataError that says which step has to be run for it."""
    if artifact is None:
        raise DataError(
            f"Step {step!r} has made nothing for this recipe in this root: `must run` with both first; "
            "`must plan` says what differs."
        )
    return artifact
