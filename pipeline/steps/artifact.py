"""Steps, and the artifacts that they leave. What is on disk is all that is known of what is done.

An artifact is a folder `<root>/artifacts/<step>/<fingerprint>/` whose `manifest.json` is written last, by rename: if it
is there, the artifact is complete. The fingerprint hashes the step's kind and version, its configuration, and the
digests of its inputs. A digest hashes an artifact's files, so a step that ran again with the same result changes
nothing further down.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, Field, ValidationError

from pipeline.errors import ConfigError, DataError
from pipeline.steps.config_hash import hash_json, masked, without_locations
from pipeline.steps.runtime import Runtime
from pipeline.storage.atomic import PART_SUFFIX, atomic_write, fsync
from pipeline.storage.root import Root, StoredFile, hash_file, hash_if_exists, path_in_errors
from pipeline.storage.shortage import raise_shortage

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
WORK, LOG = "work", "log"
"""Subfolders of an artifact: `work` is scratch, deleted in the end; `log` is kept but not part of the digest."""

REMEDY = "Delete this file, as `must artifacts verify --repair` does: the next run makes its step again."
EXTERNAL_FILES = "elsewhere"
"""Key of what a step returns beside its counts: files outside its folder, {path in the root: {size, sha256}}."""

INHERITED_FILES = "adopted"
"""Key of what a step returns beside its counts: files of `Inputs.previous` that it reuses as they are, {path in its
folder: path in the previous artifact}."""

CHECKED_BYTES = 1 << 20
"""Local files of at most this size are compared with their hash before they are read, which takes a millisecond."""

T = TypeVar("T")
StepFunction = Callable[[Mapping[str, Any], "Inputs", Path], Mapping[str, Any]]


class LabelCheck(NamedTuple):
    """A check, made as soon as all data is read, that there is enough of it for a step."""

    needs: Callable[[Mapping[str, Any]], Any]
    """Return what the check depends on, as JSON, given a step's `config`. Of steps with equal needs one is checked."""
    check: str
    """The function "module:function", called as `(config, inputs)` with the artifacts of `early` steps. It raises
    ConfigError."""


@dataclasses.dataclass(frozen=True)
class StepKind:
    """A kind of step: the function that does the work, and how it may be run. Defined in `flows/plan/*_steps.py`.

    Example:
        STUDENT = StepKind("student", "student.train:train_student", trains="student.batch")
    """

    name: str
    """A part of the fingerprint, as `version` is."""
    run: str
    """The function "module:function", called as `(config, inputs, out)`. Not in the fingerprint: code may move."""
    version: int = 1
    """To be raised when the same configuration and inputs give another result."""
    early: bool = False
    """True if it only reads data: such steps come first, so that mistakes in the data are found before any training."""
    measures: bool = False
    """True if it leaves numbers that the report shows."""
    trains: str = ""
    """Of a step whose work several processes may share, which train one network together: the key of its configuration
    (`student.batch`) with the images of a step, of which each process takes at least one."""
    fewest_images: Callable[[Mapping[str, Any], Mapping[str, Artifact]], int] | None = None
    """Of such a step whose data can leave it with fewer images to share: from its configuration and the artifacts of
    its inputs, return how many."""
    parts: str = ""
    """Of a step whose work can be done in parts, by any process that reaches the root, before it runs: the module with
    `remaining_parts(config, inputs)`, `do_part(config, inputs, part)` and `exclusive(inputs)`, a context in which no
    other run does the same parts. Parts and what `do_part` returns are JSON.
    """
    incremental_keys: tuple[str, ...] | None = None
    """Of a step that can reuse the work of an earlier artifact: the keys of its configuration (`files`, `source.path`)
    in which that artifact may differ, as it may in its inputs; () for none."""
    label_check: LabelCheck | None = None
    location_keys: tuple[str, ...] = ()
    """The keys of its configuration (`source.path`) that may name a file or folder of this machine, of whose content
    other keys tell. Such a path is not in the fingerprint: what is moved stays the same.
    """

    @property
    def reuses_earlier_work(self) -> bool:
        """True if it reuses work of other attempts unless it is forced; others find only their own, in `work`."""
        return bool(self.parts) or self.incremental_keys is not None


@dataclasses.dataclass(frozen=True)
class Step:
    """A node of the DAG."""

    name: str
    """Unique in a plan, and the name of the folder of its artifacts: `teacher.things`."""
    kind: StepKind
    section: tuple[str, ...]
    """The part of the recipe that asks for it: ("teachers", "things")."""
    config: Mapping[str, Any]
    """JSON: all that can change the result, and nothing that cannot (device, workers, runner)."""
    inputs: tuple[str, ...] = ()
    """Names of the steps whose artifacts it reads."""

    def function(self) -> StepFunction:
        """Import the function that does the work."""
        return import_function(self.kind.run)

    def fingerprint(self, artifacts: Mapping[str, Artifact]) -> str:
        """Return the fingerprint of its result, given the artifacts of its inputs by name."""
        return fingerprint(self, {name: made.digest for name, made in artifacts.items()})


def import_function(path: str) -> Callable[..., Any]:
    """Import the function at "module:function"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A sealed folder, by its path in the root, and its manifest. Its files are read through `load` and `file`."""

    root: Root
    path: str
    manifest: Mapping[str, Any]

    def __str__(self) -> str:
        return str(self.root / self.path)

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def kind(self) -> str:
        """The name of the kind of step that made it."""
        return self.manifest["kind"]

    @property
    def section(self) -> tuple[str, ...]:
        """The part of the recipe that asked for it, as `Step.section`."""
        return tuple(self.manifest["section"])

    @property
    def digest(self) -> str:
        return self.manifest["digest"]

    @property
    def counts(self) -> Mapping[str, Any]:
        return self.manifest["counts"]

    def has(self, name: str) -> bool:
        """Return True if the artifact has a file of this name."""
        return name in self.manifest["files"]

    def file(self, name: str) -> StoredFile:
        """Return one of its files, by its path in the artifact. Raises DataError if it has none of this name."""
        if not self.has(name):
            raise DataError(f"{self}: its manifest lists no file {name!r}.")
        return self.root.file(f"{self.path}/{name}", self.manifest["files"][name])

    def load(self, name: str, reader: Callable[[Path], T]) -> T:
        """Return `reader(path)` for a local copy of one of its files. Raises DataError if a small one has changed."""
        file = self.file(name)
        if file.size <= CHECKED_BYTES:
            file.check()
        return file.load(reader)

    def load_all(self, reader: Callable[[Path], T]) -> T:
        """Return `reader(folder)` for a local folder with all of its files but the log."""
        if self.root.local:
            return reader(Path(self.root / self.path))
        files = {name: self.file(name) for name in self.manifest["files"] if not name.startswith(f"{LOG}/")}
        with self.root.local_copies(files) as folder, path_in_errors(folder, str(self)):
            return reader(folder)

    def external_file(self, path: str) -> StoredFile:
        """Return one of its files outside its folder, by its path in the root."""
        return self.root.file(path, self.manifest[EXTERNAL_FILES][path])

    def files(self) -> Iterator[StoredFile]:
        """Yield all files of the artifact, in its folder and elsewhere in the root."""
        yield from (self.file(name) for name in self.manifest["files"])
        yield from (self.external_file(path) for path in self.manifest.get(EXTERNAL_FILES, {}))

    def is_whole(self) -> bool:
        """Return True if every file is there with its size. Costs a listing per folder; no file is read."""
        sizes = {self.path: {name: facts["size"] for name, facts in self.manifest["files"].items()}}
        for path, facts in self.manifest.get(EXTERNAL_FILES, {}).items():
            folder, name = posixpath.split(path)
            sizes.setdefault(folder, {})[name] = facts["size"]
        return all((self.root / folder).files().items() >= files.items() for folder, files in sizes.items())


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The artifacts that a step reads, by step name, and the runtime."""

    artifacts: Mapping[str, Artifact]
    runtime: Runtime
    force: bool = False
    """True to make everything again, and resume from nothing that an earlier attempt left."""
    parts: Sequence[Mapping[str, Any]] = ()
    """What the work on the step's parts returned, if they were done before."""
    previous: Artifact | None = None
    """The artifact that an incremental step can go on from, if there is one: the newest complete one of the same step
    and version whose configuration differs in `StepKind.incremental_keys` alone. `Workspace.make` finds it."""

    def __getitem__(self, step: str) -> Artifact:
        return self.artifacts[step]

    def of_kind(self, kind: str) -> dict[str, Artifact]:
        """Return the artifacts that steps of a kind made, by the names of their sections: `world` for `data.world`."""
        return of_kind(self.artifacts.values(), kind)


def of_kind(artifacts: Iterable[Artifact], kind: str) -> dict[str, Artifact]:
    """Return the artifacts that steps of a kind made, by the names of their sections: `world` for `data.world`."""
    return {made.section[-1]: made for made in artifacts if made.kind == kind}


def fingerprint(step: Step, digests: Mapping[str, str]) -> str:
    """Return the address of a step's result, 16 hex digits, given the digests of its inputs by step name."""
    inputs = {name: digests[name] for name in step.inputs}
    config = masked(without_locations(step.config, step.kind.location_keys))
    return hash_json([SCHEMA_VERSION, step.kind.name, step.kind.version, config, inputs])[:16]


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def dump_json(value: Any) -> str:
    """Return indented JSON."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_atomically(path, dump_json(value))


def parse_json(text: bytes, origin: str) -> Any:
    """Parse JSON. Raises DataError, beginning with `origin`, if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{origin}: not readable as JSON ({error}).") from error


def parse_lines(text: bytes) -> Iterator[dict[str, Any]]:
    """Yield the objects in a text of JSON lines. Lines that are damaged, as by a kill while writing, are left out."""
    for line in text.decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value


class _FileFacts(BaseModel):
    size: int = Field(ge=0)
    sha256: str


class _InputFacts(BaseModel):
    digest: str
    path: str


class _Manifest(BaseModel):
    """The fields of a manifest that others read."""

    kind: str
    section: list[str]
    step: str
    fingerprint: str
    digest: str
    config: dict[str, Any]
    inputs: dict[str, _InputFacts]
    counts: dict[str, Any]
    software: dict[str, str]
    files: dict[str, _FileFacts]
    elsewhere: dict[str, _FileFacts] = Field(default_factory=dict)
    version: int
    began: float = Field(allow_inf_nan=False)
    seconds: float = Field(allow_inf_nan=False)


def parse_manifest(text: bytes, origin: str) -> dict[str, Any]:
    """Parse a manifest.

    Raises DataError if it is damaged or names files that are not below the root, ConfigError if it is whole, but of
    another schema version.
    """
    try:
        manifest: dict[str, Any] = parse_json(text, origin)
    except DataError as error:
        raise DataError(f"{error} {REMEDY}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        raise DataError(f"{origin}: holds {manifest!r:.40}, which is no manifest. {REMEDY}")
    if manifest["schema"] != SCHEMA_VERSION:
        software = manifest["software"] if isinstance(manifest.get("software"), dict) else {}
        raise ConfigError(
            f"{origin}: written by must {software.get('must', '(unknown)')} with schema {manifest['schema']}; "
            f"this is must {importlib.metadata.version('must')}, which reads schema {SCHEMA_VERSION}. Use that version "
            "with this root, or name another --root for this one."
        )
    try:
        fields = _Manifest.model_validate(manifest, strict=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(map(str, wrong["loc"]))
        raise DataError(f"{origin}: {place}: {wrong['msg']} ({wrong['input']!r:.40}). {REMEDY}") from error
    for name in (*fields.files, *fields.elsewhere):
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"{origin}: names the file {name!r}, which is not below the root. {REMEDY}")
    return manifest


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises DataError if it is missing or not JSON."""
    try:
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise_shortage(error, path)
        raise DataError(f"{path}: not readable as JSON ({error}).") from error


def contents(folder: Path, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return {"files": {path: {size, sha256}}, "digest"} of a folder without scratch.

    Files in `known` are listed as given there: they are not read and need not be in the folder.
    """
    known = known or {}
    files: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        is_scratch = name == MANIFEST or name.startswith(f"{WORK}/") or name.endswith(PART_SUFFIX)
        if path.is_file() and not is_scratch and name not in known:
            fsync(path)  # before the manifest, so that it never names a file that a power failure emptied
            files[name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    files |= known
    kept = {name: facts["sha256"] for name, facts in files.items() if not name.startswith(f"{LOG}/")}
    return {"files": files, "digest": hash_json(kept)}


def verify(artifact: Artifact) -> Iterator[tuple[StoredFile, str]]:
    """Yield the files of an artifact that differ from its manifest, each with what is wrong. Reads every byte."""
    for file in artifact.files():
        try:
            sha256 = hash_if_exists(file.path)
        except DataError as error:
            yield file, str(error)
            continue
        if sha256 is None:
            yield file, "missing"
        elif sha256 != file.sha256:
            yield file, "its bytes changed since it was made"


def require(artifact: Artifact | None, step: str) -> Artifact:
    """Return the artifact. If there is none, raise DataError that says which step has to be run."""
    if artifact is None:
        raise DataError(
            f"Step {step!r} has made nothing for this recipe in this root: `must run RECIPE --root ROOT` first; "
            "`must plan` says what differs."
        )
    return artifact
