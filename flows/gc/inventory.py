"""What a root holds: its artifacts, who refers to them, and what nothing refers to any more. No torch, no Prefect."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pipeline.errors import require_one_of
from pipeline.recipe.comparison import COMPARE
from pipeline.steps.artifact import EXTERNAL_FILES, MANIFEST, Artifact, parse_lines, parse_manifest, verify
from pipeline.steps.workspace import Workspace
from pipeline.storage.atomic import PART_SUFFIX
from pipeline.storage.lock import lock_holders
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root, StoredFile, in_parallel
from pipeline.stores.naming import DIGITS, LABELLING, version_of
from pipeline.stores.rejections import PATH as REJECTED

Key = tuple[str, str]
"""A step and a fingerprint."""
GOALS = (COMPARE, "evaluate", "student", "labelling")
"""Sections of the recipe that runs are made for, the furthest first."""
STARTED = re.compile(r"^(?P<recipe>.*)-(?P<time>\d{8}-\d{6}(-\d+)?)$")
"""The name of a run's folder."""


@dataclasses.dataclass(frozen=True)
class RunUse:
    """A run, by the name of its folder, and the artifacts that it reused, made, or began to make."""

    name: str
    recipe: str
    uses: frozenset[Key]
    to_make: frozenset[str]
    """Steps that were to be made when it was planned."""
    sections: frozenset[tuple[str, ...]]
    """The parts of the recipe that its steps belong to, as `Step.section`."""
    finished: bool
    at_work: bool

    def reached(self, goal: str) -> bool:
        """Return True if it came to its end, and steps of this section were a part of it."""
        return self.finished and any(section[0] == goal for section in self.sections)

    @property
    def purpose(self) -> tuple[str, ...]:
        """What it takes the place of earlier runs for: its recipe, and the comparisons that it made."""
        return (self.recipe, *sorted({section[1] for section in self.sections if section[0] == COMPARE}))


@dataclasses.dataclass(frozen=True)
class StoredArtifact:
    """A sealed artifact, or (no manifest) what an unfinished attempt left; size in bytes, with its files elsewhere."""

    key: Key
    path: str
    manifest: Mapping[str, Any] | None
    files: Mapping[str, int]
    """Everything in its folder, by its path from there: size in bytes."""
    size: int
    users: tuple[str, ...]
    """The runs that refer to it, the newest first."""


def runs(root: Root) -> list[RunUse]:
    """All runs of a root, the newest first."""
    claimed = {name.removeprefix("runs/") for name in lock_holders(root / "claims") if name.startswith("runs/")}
    folders = [folder for folder in (root / "runs").folders() if STARTED.match(folder.name)]
    found = []
    for folder, (planned, events) in zip(folders, in_parallel(_records, folders), strict=True):
        match = STARTED.match(folder.name)
        assert match
        uses = frozenset((row["step"], row["artifact"]) for row in [*planned, *events] if row.get("artifact"))
        to_make = frozenset(row["step"] for row in planned if not row["artifact"])
        finished = any(event["event"] == "finished" for event in events)
        sections = frozenset(tuple(row["section"]) for row in planned)
        use = RunUse(folder.name, match["recipe"], uses, to_make, sections, finished, folder.name in claimed)
        found.append((match["time"], use))
    return [run for _, run in sorted(found, key=lambda pair: pair[0], reverse=True)]


def _records(run: StoragePath) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a run's plan, which name the artifacts it found, and its events, which name those it came to."""
    planned = json.loads(run.child("plan.json").read_if_exists() or b"[]")
    return planned, list(parse_lines(run.child("events.jsonl").read_if_exists() or b""))


def artifacts(root: Root, every_run: Iterable[RunUse]) -> list[StoredArtifact]:
    """Everything below `artifacts/`, by step and then the newest first."""
    users: dict[Key, list[str]] = collections.defaultdict(list)
    for run in every_run:
        for key in run.uses:
            users[key].append(run.name)
    folders: dict[Key, dict[str, int]] = collections.defaultdict(dict)
    for name, size in (root / "artifacts").files().items():
        step, fingerprint, file = (*name.split("/", 2), "", "")[:3]
        if file:  # else it is no artifact's: systems leave files of their own in folders that people look at
            folders[step, fingerprint][file] = size
    texts = in_parallel(lambda key: (root / f"artifacts/{key[0]}/{key[1]}/{MANIFEST}").read_if_exists(), folders)
    found = []
    for (key, files), text in zip(folders.items(), texts, strict=True):
        path = f"artifacts/{key[0]}/{key[1]}"
        manifest = parse_manifest(text, f"{path}/{MANIFEST}") if text else None
        elsewhere = sum(facts["size"] for facts in (manifest or {}).get(EXTERNAL_FILES, {}).values())
        found.append(StoredArtifact(key, path, manifest, files, sum(files.values()) + elsewhere, tuple(users[key])))
    return sorted(found, key=lambda held: (held.key[0], -(held.manifest or {}).get("began", 0)))


def named(root: Root, name: str, held: Iterable[StoredArtifact]) -> StoredArtifact:
    """The artifact that a user calls `step` (its newest sealed one) or `step/fingerprint`, which may be cut short.

    ConfigError lists what there is.
    """
    step, _, fingerprint = name.partition("/")
    there = [each for each in held if each.manifest]
    require_one_of(step, {each.key[0] for each in there}, f"Step in {root}:")
    of_step = [each for each in there if each.key[0] == step]
    if not fingerprint:
        return of_step[0]
    fitting = [each for each in of_step if each.key[1].startswith(fingerprint)]
    if len(fitting) != 1:
        require_one_of(fingerprint, [each.key[1] for each in of_step], f"Fingerprint of {step}:")
    return fitting[0]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Files that are kept or nothing refers to: what they are, how many, how large, and why."""

    what: str
    files: tuple[str, ...]
    size: int
    kept: bool
    why: str


def sort_out(workspace: Workspace, keep: int = 1) -> list[Verdict]:
    """Everything in a root that runs can do without, and everything they can't, each with the reason.

    Kept is what a run at work uses or may go on from, and what the newest runs of each recipe refer to, back to the
    `keep`th that was whole: that came to its end, and as far as any run of the recipe did. Of labels, those that kept
    label artifacts refer to, and, while there are more to come, all those of kept teachers.
    """
    root = workspace.root
    every_run = runs(root)
    reasons = _reasons(every_run, keep)
    at_work = lock_holders(root / "claims")
    working = [run for run in every_run if run.at_work]
    verdicts, kept = [], []
    for held in artifacts(root, every_run):
        claim = at_work.get("/".join(held.key))
        why = f"process {claim.number} is at work on it" if claim else reasons.get(held.key)
        why = why or next((f"{run.name} may go on from it" for run in working if held.key[0] in run.to_make), None)
        if why:
            kept.append(held)
        left = _left_over(held) if why and held.manifest and not claim else {}
        verdicts.append(_verdict(held, why, {name: held.files[name] for name in held.files if name not in left}))
        if left:
            files = [(f"{held.path}/{name}", size) for name, size in left.items()]
            why = "left by a process that was killed while it tidied up"
            verdicts.append(_of_files("/".join(held.key), files, False, why))
    sealed = {held.key for held in kept if held.manifest}
    to_come = bool(working) or any(
        step in LABELLING and (step, fingerprint) not in sealed for step, fingerprint in reasons
    )
    return [*verdicts, *_labels(root, kept, to_come), *_leftovers(root, quiet=not at_work)]


def _reasons(every_run: Sequence[RunUse], keep: int) -> dict[Key, str]:
    """Why artifacts are kept."""
    reasons: dict[Key, str] = {}
    goals = {purpose: _goal(every_run, purpose) for purpose in {run.purpose for run in every_run}}
    whole: collections.Counter[tuple[str, ...]] = collections.Counter()
    for run in every_run:
        if run.at_work or whole[run.purpose] < keep:
            for key in run.uses:
                reasons.setdefault(key, f"{run.name} {'uses it now' if run.at_work else 'refers to it'}")
        goal = goals[run.purpose]
        whole[run.purpose] += goal is not None and run.reached(goal)
    return reasons


def _goal(every_run: Sequence[RunUse], purpose: tuple[str, ...]) -> str | None:
    """The step that a run of one purpose has to reach to be a whole one; None while none has reached any."""
    runs = [run for run in every_run if run.purpose == purpose]
    return next((step for step in GOALS if any(run.reached(step) for run in runs)), None)


def _left_over(held: StoredArtifact) -> dict[str, int]:
    """The files in a sealed folder that are no part of the artifact."""
    own = {MANIFEST, *(held.manifest or {})["files"]}
    return {name: size for name, size in held.files.items() if name not in own}


def _verdict(held: StoredArtifact, why: str | None, names: Mapping[str, int]) -> Verdict:
    """About these files of an artifact, {path: size in bytes}; `why` it is kept, None if it is not."""
    files = tuple(f"{held.path}/{name}" for name in sorted(names, key=lambda name: name != MANIFEST))  # unsealed first
    size = sum(names.values())
    if why is None:
        last = f"only older runs do, last {held.users[0]}" if held.users else "nothing refers to it"
        why = last if held.manifest else f"unfinished; {last}"
        return Verdict("/".join(held.key), files, size, False, why)
    return Verdict("/".join(held.key), files, size, True, why if held.manifest else f"unfinished; {why}")


def _labels(root: Root, kept: Iterable[StoredArtifact], to_come: bool) -> Iterator[Verdict]:
    """A verdict on the labels of every teacher that are referred to, and on those that are not, and on what users
    rejected. `to_come`: a label step is unfinished, whose artifact will refer to more.
    """
    manifests = [held.manifest for held in kept if held.manifest]
    wanted = {path for manifest in manifests for path in manifest.get(EXTERNAL_FILES, {})}
    folders: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
    there = {f"labels/{name}": size for name, size in (root / "labels").files().items()}
    rejected = there.pop(REJECTED, None)
    if rejected is not None:
        yield _of_files(REJECTED, [(REJECTED, rejected)], True, "what was rejected by hand")
    for name, size in there.items():
        if not posixpath.basename(name).startswith("."):
            folders[posixpath.dirname(name)].append((name, size))
    makers = {manifest["digest"][:DIGITS] for manifest in manifests} if to_come else set()
    for folder, files in sorted(folders.items()):
        yield from _of_store(folder, files, wanted, version_of(folder) in makers)


def _of_store(folder: str, files: list[tuple[str, int]], wanted: set[str], kept: bool) -> Iterator[Verdict]:
    used = [(name, size) for name, size in files if name in wanted]
    rest = [(name, size) for name, size in files if name not in wanted]
    if used:
        yield _of_files(folder, used, True, "kept label artifacts refer to them")
    if rest and kept:
        yield _of_files(folder, rest, True, "of a label step that is unfinished")
    elif rest:
        yield _of_files(folder, rest, False, "no kept label artifact refers to them")


def _of_files(what: str, files: list[tuple[str, int]], kept: bool, why: str) -> Verdict:
    return Verdict(what, tuple(name for name, _ in files), sum(size for _, size in files), kept, why)


def _leftovers(root: Root, quiet: bool) -> Iterator[Verdict]:
    """Hidden files that writers left when they were killed; those in artifacts' folders are counted with them."""
    parts = [
        (f"{folder}/{name}", size)
        for folder in ("labels", "claims")
        for name, size in (root / folder).files().items()
        if name.endswith(PART_SUFFIX)
    ]
    if parts:
        yield _of_files("*.part", parts, not quiet, "half-written" if quiet else "maybe being written now")


def remove(root: Root, verdicts: Iterable[Verdict]) -> None:
    """Take away what is not kept."""
    for verdict in verdicts:
        if not verdict.kept:
            for first in verdict.files[:1]:
                (root / first).remove()  # of an artifact its manifest: from here on it is no whole one
            in_parallel(lambda name: (root / name).remove(), verdict.files[1:])
            _remove_emptied(root, verdict.files)


def _remove_emptied(root: Root, names: Iterable[str]) -> None:
    """The folders of files that are gone, if nothing is left in them; object storage has no folders. Those right below
    the root stay, but for hidden ones, which are made for one use.
    """
    if root.local:
        parents = {parent for name in names for parent in PurePosixPath(name).parents}
        folders = {parent for parent in parents if len(parent.parts) > 1 or parent.name.startswith(".")}
        for folder in sorted(folders, reverse=True):
            with contextlib.suppress(OSError):  # not empty
                root.local_path(str(folder)).rmdir()


def damaged(root: Root, held: Iterable[StoredArtifact]) -> Iterator[tuple[StoredArtifact, StoredFile, str]]:
    """The files of sealed artifacts that are not what their manifests say, each with what is wrong."""
    for each in held:
        if each.manifest:
            for file, wrong in verify(Artifact(root, each.path, each.manifest)):
                yield each, file, wrong
