"""Plan garbage collection of the scratch folder that work on a remote root left on this machine."""

from __future__ import annotations

import collections
import time

from flows.gc.inventory import Key, Verdict
from pipeline.steps.artifact import LOG, MANIFEST, WORK
from pipeline.storage.cache import STALE_S
from pipeline.storage.lock import LOCKS, lock_holders
from pipeline.storage.root import Root, in_parallel

Group = tuple[str, bool, str]
"""The file or folder that files belong to, True if they are kept, and why."""


def plan_scratch_gc(root: Root) -> list[Verdict]:
    """Decide what garbage collection keeps of the scratch folder of a remote root; a local root has none.

    All of it is kept while a process of this machine is at work on the root. Else Prefect's own files are kept, and
    what a step can resume from until its artifact is sealed.
    """
    if root.local:
        return []
    scratch = Root.of(root.local_path())
    files = scratch.path.files()  # before the locks: a process that starts later has no files here
    local_holder = next((holder for holder in lock_holders(root / LOCKS).values() if holder.is_local), None)
    sealed = _sealed(root, files)
    groups: dict[Group, dict[str, int]] = collections.defaultdict(dict)
    for name, size in files.items():
        what, kept, why = _group(scratch, name, sealed)
        if local_holder:
            kept, why = True, f"process {local_holder.number} is at work on the root"
        groups[str(root.local_path(what)), kept, why][name] = size
    return [Verdict(what, sizes, kept, why) for (what, kept, why), sizes in sorted(groups.items())]


def _sealed(root: Root, files: dict[str, int]) -> set[Key]:
    """Return those of the artifacts in scratch that are sealed in the root."""
    keys = sorted({key for name in files if (key := _key(name))})
    exist = in_parallel(lambda key: (root / f"artifacts/{key[0]}/{key[1]}/{MANIFEST}").exists(), keys)
    return {key for key, exists in zip(keys, exist, strict=True) if exists}


def _key(name: str) -> Key | None:
    """Return the artifact whose folder a file lies in, if any."""
    match name.split("/", 3):
        case ["artifacts", step, fingerprint, _]:
            return step, fingerprint
    return None


def _group(scratch: Root, name: str, sealed: set[Key]) -> Group:
    """Return the group of a file in the scratch folder."""
    first, key = name.split("/", 1)[0], _key(name)
    if first == "prefect":
        return first, True, "Prefect's own files"
    if first.startswith("."):
        modified = (scratch / first).modified()
        old = modified is not None and time.time() - modified > STALE_S
        return first, not old, "left by a reader that was killed" if old else "maybe being read now"
    if key is None:
        return first, False, "left by a process that was killed"
    what = "/".join((first, *key))
    if key in sealed:
        return what, False, "the artifact is sealed"
    kept = name.split("/")[3] in (WORK, LOG)  # what `Workspace.make` resumes from
    return what, kept, "unfinished; a run may resume from it" if kept else "unfinished; a run does not need it"
