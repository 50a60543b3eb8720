"""List what a root holds, and plan which of it garbage collection deletes. No torch, no Prefect."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from pipeline.errors import ConfigError, DataError, first_line, require_one_of
from pipeline.recipe.comparison import COMPARE
from pipeline.steps.artifact import EXTERNAL_FILES, MANIFEST, Artifact, parse_manifest, verify
from pipeline.steps.events import parse_events
from pipeline.steps.run_names import RUN_NAME, run_order
from pipeline.steps.workspace import Workspace, busy
from pipeline.storage.atomic import PART_SUFFIX
from pipeline.storage.lock import LOCKS, hold_lock, lock_holders
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root, in_parallel
from pipeline.stores.naming import DIGITS, NAME, labels_pool, version_of
from pipeline.stores.rejections import PATH as REJECTIONS

Key = tuple[str, str]
"""A step and a fingerprint."""
STAGES = "stages"
GOALS = (COMPARE, "evaluate", STAGES, "student", "labelling")
"""Sections of the recipe that runs are made for, the last ones of a recipe first."""


@dataclasses.dataclass(frozen=True)
class RunUse:
    """A run and the artifacts that it refers to."""

    name: str
    """The name of its folder."""
    recipe: str
    uses: frozenset[Key]
    """Artifacts that it reused, made, or began to make."""
    to_make: frozenset[str]
    """Steps without an artifact when the run was planned."""
    sections: frozenset[tuple[str, ...]]
    """The parts of the recipe that its steps belong to, as `Step.section`."""
    finished: bool
    is_active: bool

    @property
    def goal(self) -> int:
        """The index in GOALS of the last section that it finished, 0 for the last of all; `len(GOALS)` for none."""
        done = {section[0] for section in self.sections} if self.finished else set()
        return next((index for index, goal in enumerate(GOALS) if goal in done), len(GOALS))

    @property
    def purpose(self) -> tuple[str, ...]:
        """The recipe and the comparisons that it made: a newer run replaces older ones of the same purpose."""
        return (self.recipe, *sorted(self.names_in(COMPARE)))

    def names_in(self, section: str) -> set[str]:
        """Return the names of the comparisons or stages that its steps belong to."""
        return {path[1] for path in self.sections if path[0] == section}

    def replaces(self, older: RunUse) -> bool:
        """Return True if it serves the purpose of an older run and went past the stages, or made all of its stages."""
        is_past_stages = self.goal < GOALS.index(STAGES)
        return self.purpose == older.purpose and (is_past_stages or self.names_in(STAGES) >= older.names_in(STAGES))


@dataclasses.dataclass(frozen=True)
class StoredArtifact:
    """A sealed artifact, or the unfinished folder of one."""

    key: Key
    path: str
    manifest: Mapping[str, Any] | None
    """None if it is unfinished, or if its manifest is damaged."""
    damage: DataError | None
    """What is wrong with its manifest."""
    files: Mapping[str, int]
    """Sizes in bytes of all files in its folder, by their paths in the root."""
    size: int
    """In bytes, with its files outside its folder."""
    users: tuple[str, ...]
    """Names of the runs that refer to it, the newest first."""

    @property
    def name(self) -> str:
        """`step/fingerprint`."""
        return "/".join(self.key)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Files that belong together, and whether garbage collection keeps them."""

    what: str
    """What they are: the name of an artifact, or a path."""
    files: Mapping[str, int]
    """Sizes in bytes by path in the root."""
    kept: bool
    why: str
    lock: str = ""
    """The lock, by its path below LOCKS, that whoever makes or uses these files holds; "" if there is none."""

    @property
    def size(self) -> int:
        """The size of all files, in bytes."""
        return sum(self.files.values())


def list_runs(root: Root) -> list[RunUse]:
    """Return all runs of a root, the newest first."""
    active = {name.removeprefix("runs/") for name in lock_holders(root / LOCKS) if name.startswith("runs/")}
    folders = [folder for folder in (root / "runs").folders() if RUN_NAME.match(folder.name)]
    folders.sort(key=lambda folder: run_order(folder.name), reverse=True)
    runs = []
    for folder, (rows, events) in zip(folders, in_parallel(_read_run, folders), strict=True):
        uses = frozenset((row["step"], row["artifact"]) for row in [*rows, *events] if row.get("artifact"))
        to_make = frozenset(row["step"] for row in rows if not row["artifact"])
        finished = any(event["event"] == "finished" for event in events)
        sections = frozenset(tuple(row["section"]) for row in rows)
        recipe = RUN_NAME.sub(r"\g<recipe>", folder.name)
        runs.append(RunUse(folder.name, recipe, uses, to_make, sections, finished, folder.name in active))
    return runs


class _PlanRow(BaseModel):
    """A row of a run's plan."""

    step: str
    section: list[str]
    artifact: str | None


_PLAN = TypeAdapter(list[_PlanRow])


def _read_run(run: StoragePath) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of a run's plan, which name the artifacts it found, and its events, which name all others.

    Raises DataError if the plan is damaged: what the run uses is then unknown. Events that are damaged are left out.
    """
    file = run.child("plan.json")
    try:
        rows = _PLAN.dump_python(_PLAN.validate_json(file.read_if_exists() or b"[]"))
    except ValidationError as error:
        raise DataError(
            f"{file}: damaged ({first_line(error)}). Delete the run's folder; its artifacts stay."
        ) from error
    return rows, parse_events(run.child("events.jsonl").read_if_exists() or b"")


def list_files(root: Root, *folders: str) -> dict[str, int]:
    """Return the sizes of the files in these folders of a root in bytes, by path in the root."""
    return {f"{folder}/{name}": size for folder in folders for name, size in (root / folder).files().items()}


def list_artifacts(root: Root, runs: Iterable[RunUse], sizes: Mapping[str, int]) -> list[StoredArtifact]:
    """Return the artifacts that `sizes` of `list_files` lists, by step, of each step the newest first."""
    users: dict[Key, list[str]] = collections.defaultdict(list)
    for run in runs:
        for key in run.uses:
            users[key].append(run.name)
    folders: dict[Key, dict[str, int]] = collections.defaultdict(dict)
    for name, size in sizes.items():
        folder, step, fingerprint, file = (*name.split("/", 3), "", "")[:4]
        if folder == "artifacts" and file:  # not a file that the system leaves in folders, such as .DS_Store
            folders[step, fingerprint][name] = size
    texts = in_parallel(lambda key: (root / f"artifacts/{key[0]}/{key[1]}/{MANIFEST}").read_if_exists(), folders)
    artifacts = []
    for (key, files), text in zip(folders.items(), texts, strict=True):
        path = f"artifacts/{key[0]}/{key[1]}"
        manifest, damage = None, None
        try:
            manifest = parse_manifest(text, str(root / f"{path}/{MANIFEST}")) if text is not None else None
        except DataError as error:
            damage = error
        external = sum(facts["size"] for facts in (manifest or {}).get(EXTERNAL_FILES, {}).values())
        size = sum(files.values()) + external
        artifacts.append(StoredArtifact(key, path, manifest, damage, files, size, tuple(users[key])))
    return sorted(artifacts, key=lambda artifact: (artifact.key[0], -(artifact.manifest or {}).get("began", 0)))


def find_artifact(root: Root, name: str, artifacts: Iterable[StoredArtifact]) -> StoredArtifact:
    """Return the artifact that a user calls `step` (its newest sealed one) or `step/fingerprint`.

    The first digits of the fingerprint are enough. Raises ConfigError with the known names if there is none.
    """
    step, _, fingerprint = name.partition("/")
    sealed = [artifact for artifact in artifacts if artifact.manifest]
    require_one_of(step, {artifact.key[0] for artifact in sealed}, f"Step in {root}:")
    of_step = [artifact for artifact in sealed if artifact.key[0] == step]
    if not fingerprint:
        return of_step[0]
    matches = [artifact for artifact in of_step if artifact.key[1].startswith(fingerprint)]
    if not matches:
        require_one_of(fingerprint, [artifact.key[1] for artifact in of_step], f"Fingerprint of {step}:")
    if len(matches) > 1:
        several = " and ".join(artifact.key[1] for artifact in matches)
        raise ConfigError(f"Fingerprint of {step}: {fingerprint!r} is the beginning of {several}: give more digits.")
    return matches[0]


def find_damage(root: Root, artifact: StoredArtifact, repair: bool = False) -> Iterator[str]:
    """Yield what is wrong with an artifact: a damaged manifest, or each file that differs from it.

    With `repair` these files are deleted, and nobody makes the artifact meanwhile: raises Busy if a run does.
    """
    manifest = root / f"{artifact.path}/{MANIFEST}"
    lock = hold_lock(root / LOCKS / artifact.name, busy, lambda: None) if repair else contextlib.nullcontext()
    with lock:
        text = manifest.read_if_exists()  # once more: it may have been made again since it was listed
        for file, problem in _damage_by(root, artifact, text) if text is not None else ():
            yield problem
            if repair:
                file.remove()


def _damage_by(root: Root, artifact: StoredArtifact, manifest: bytes) -> Iterator[tuple[StoragePath, str]]:
    """Yield the damaged files of an artifact, given the text of its manifest, each with the problem."""
    path = root / f"{artifact.path}/{MANIFEST}"
    try:
        made = Artifact(root, artifact.path, parse_manifest(manifest, str(path)))
    except DataError as error:
        yield path, str(error)
        return
    for file, problem in verify(made):
        yield file.path, f"{artifact.name}: {file}: {problem}"


def plan_gc(workspace: Workspace, keep: int = 1) -> list[Verdict]:
    """Decide what garbage collection keeps of everything in a root, and why.

    Kept is what active runs use or may resume, and what the newest runs of each purpose refer to, back to the `keep`th
    complete one: one that finished and went as far as any run of its purpose, to the same stages. Of labels, those
    that kept label artifacts refer to are kept, and while a label step is unfinished, all labels of kept teachers.
    Raises DataError if a manifest is damaged: what else its artifact refers to is then unknown.
    """
    root = workspace.root
    # Labels before the artifacts that made them, all files before their users: what a run makes meanwhile is in none.
    sizes = list_files(root, "labels", "machine", "runs", LOCKS, "artifacts")
    holders = lock_holders(root / LOCKS)
    runs = list_runs(root)
    reasons = _reasons(runs, keep)
    active = [run for run in runs if run.is_active]
    verdicts, kept = [], []
    for artifact in list_artifacts(root, runs, sizes):
        if artifact.damage:
            raise artifact.damage
        holder = holders.get(artifact.name)
        why = f"{holder} is at work on it" if holder else reasons.get(artifact.key)
        why = why or next((f"{run.name} may resume from it" for run in active if artifact.key[0] in run.to_make), None)
        if why:
            kept.append(artifact)
        strays = _stray_files(artifact) if why and artifact.manifest and not holder else {}
        verdicts.append(_verdict_on_artifact(artifact, why, strays))
        if strays:
            verdicts.append(Verdict(artifact.name, strays, False, "left by a process that was killed", artifact.name))
    sealed = {artifact.key for artifact in kept if artifact.manifest}
    labelling = bool(active) or any(labels_pool(key[0]) and key not in sealed for key in reasons)
    return [*verdicts, *_verdicts_on_labels(sizes, kept, labelling), *_verdicts_on_leftovers(sizes, idle=not holders)]


def _reasons(runs: Sequence[RunUse], keep: int) -> dict[Key, str]:
    """Return why runs keep artifacts, by artifact."""
    goals = {
        purpose: min(run.goal for run in runs if run.purpose == purpose) for purpose in {run.purpose for run in runs}
    }
    reasons: dict[Key, str] = {}
    complete: list[RunUse] = []
    for run in runs:
        if run.is_active or sum(newer.replaces(run) for newer in complete) < keep:
            for key in run.uses:
                reasons.setdefault(key, f"{run.name} {'uses it now' if run.is_active else 'refers to it'}")
        if run.goal == goals[run.purpose] and run.goal < len(GOALS):
            complete.append(run)
    return reasons


def _stray_files(artifact: StoredArtifact) -> dict[str, int]:
    """Return the files in a sealed folder that do not belong to the artifact, with their sizes."""
    own = {f"{artifact.path}/{name}" for name in (MANIFEST, *(artifact.manifest or {})["files"])}
    return {name: size for name, size in artifact.files.items() if name not in own}


def _verdict_on_artifact(artifact: StoredArtifact, why: str | None, strays: Mapping[str, int]) -> Verdict:
    """Return the verdict on an artifact's files without the strays. `why` is None if it is not kept."""
    kept = why is not None
    if why is None:
        why = f"only older runs refer to it, last {artifact.users[0]}" if artifact.users else "nothing refers to it"
    if not artifact.manifest:
        why = f"unfinished; {why}"
    own = {name: size for name, size in artifact.files.items() if name not in strays}
    return Verdict(artifact.name, own, kept, why, artifact.name)


def _verdicts_on_labels(sizes: Mapping[str, int], kept: Iterable[StoredArtifact], labelling: bool) -> Iterator[Verdict]:
    """Yield verdicts on the label stores of every teacher, and on the list of rejections.

    `labelling`: a label step is unfinished, so its artifact may refer to labels that no manifest lists yet.
    """
    manifests = [artifact.manifest for artifact in kept if artifact.manifest]
    wanted = {path for manifest in manifests for path in manifest.get(EXTERNAL_FILES, {})}
    stores: dict[str, dict[str, int]] = collections.defaultdict(dict)
    if REJECTIONS in sizes:
        yield Verdict(REJECTIONS, {REJECTIONS: sizes[REJECTIONS]}, True, "what was rejected by hand")
    for name, size in sizes.items():
        folder, file = posixpath.split(name)
        if NAME.fullmatch(folder.removeprefix("labels/")) and not file.startswith("."):  # no copy that a user made
            stores[folder][name] = size
    makers = {manifest["digest"][:DIGITS] for manifest in manifests} if labelling else set()
    for store, files in sorted(stores.items()):
        used = {name: size for name, size in files.items() if name in wanted}
        unused = {name: size for name, size in files.items() if name not in wanted}
        if used:
            yield Verdict(store, used, True, "kept label artifacts refer to them")
        if unused and version_of(store) in makers:
            yield Verdict(store, unused, True, "an unfinished label step may refer to them")
        elif unused:
            yield Verdict(store, unused, False, "no kept label artifact refers to them", store)


def _verdicts_on_leftovers(sizes: Mapping[str, int], idle: bool) -> Iterator[Verdict]:
    """Yield the verdicts on half-written files outside artifacts and on locks. They are kept unless it is idle."""
    outside = {name: size for name, size in sizes.items() if not name.startswith("artifacts/")}
    parts = {name: size for name, size in outside.items() if name.endswith(PART_SUFFIX)}
    if parts:
        yield Verdict("*.part", parts, not idle, "half-written" if idle else "maybe being written now")
    locks = {name: size for name, size in outside.items() if name.startswith(f"{LOCKS}/") and name not in parts}
    if locks and idle:
        yield Verdict("locks", locks, False, "their holders have ended")
