"""What work on a root elsewhere has left on this machine, in the scratch folder beside the cache."""

from __future__ import annotations

import collections
import time
from pathlib import Path

from flows.gc.inventory import Key, Verdict
from pipeline.steps.artifact import LOG, MANIFEST, WORK
from pipeline.storage.cache import STALE_S
from pipeline.storage.lock import lock_holders
from pipeline.storage.root import Root, in_parallel

Reason = tuple[str, bool, str]
"""What a file belongs to, whether it is kept, and why."""


def scratch(root: Root) -> list[Verdict]:
    """A verdict on everything in the scratch folder of a root; nothing for one that is here itself.

    All of it is kept while a process of this machine is at work on the root. Else, what a step can go on from is kept
    until the step is sealed, and Prefect's own files are.
    """
    if root.local:
        return []
    files = Root.of(root.local_path()).path.files()  # first: a process that begins to work after that look has none
    at_work = next((holder for holder in lock_holders(root / "claims").values() if holder.is_local), None)
    sealed = _sealed(root, files)
    grouped: dict[Reason, dict[str, int]] = collections.defaultdict(dict)
    for name, size in files.items():
        what, kept, why = _judge(root, name, sealed)
        if at_work:
            kept, why = True, f"process {at_work.number} is at work on the root"
        grouped[str(root.local_path(what)), kept, why][name] = size
    found = sorted(grouped.items())
    return [Verdict(what, tuple(names), sum(names.values()), kept, why) for (what, kept, why), names in found]


def _sealed(root: Root, files: dict[str, int]) -> set[Key]:
    """Of the artifacts in scratch those that are in the root."""
    keys = sorted({key for name in files if (key := _key(name))})
    there = in_parallel(lambda key: (root / f"artifacts/{key[0]}/{key[1]}/{MANIFEST}").exists(), keys)
    return {key for key, found in zip(keys, there, strict=True) if found}


def _key(name: str) -> Key | None:
    """The artifact whose folder a file lies in, if it does in one."""
    match name.split("/", 3):
        case ["artifacts", step, fingerprint, _]:
            return step, fingerprint
    return None


def _judge(root: Root, name: str, sealed: set[Key]) -> Reason:
    """About a file of the scratch folder."""
    first, key = name.split("/", 1)[0], _key(name)
    if first == "prefect":
        return first, True, "Prefect's own files"
    if first.startswith("."):
        old = _age(root.local_path(first)) > STALE_S
        return first, not old, "a reader was killed" if old else "maybe being read now"
    if key is None:
        return first, False, "left by a process that was killed"
    what = "/".join((first, *key))
    if key in sealed:
        return what, False, "the artifact is sealed"
    kept = name.split("/")[3] in (WORK, LOG)  # as `Workspace.make` keeps them
    return what, kept, "unfinished; a run may go on from it" if kept else "unfinished; a run begins without it"


def _age(folder: Path) -> float:
    """Seconds since something was put into a folder; 0 if it is gone."""
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0
