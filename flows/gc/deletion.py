"""Delete what garbage collection does not keep, while other processes may begin to use it."""

from __future__ import annotations

import contextlib
import dataclasses
import posixpath
from collections.abc import Iterable, Iterator, Set
from pathlib import PurePosixPath

from flows.gc.inventory import Verdict
from pipeline.steps.artifact import MANIFEST
from pipeline.steps.workspace import Busy, busy
from pipeline.storage.lock import LOCKS, hold_lock
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root, in_parallel


def run_names(root: Root) -> set[str]:
    """Return the names of all runs of a root."""
    return {folder.name for folder in (root / "runs").folders()}


def delete_files(root: Root, verdicts: Iterable[Verdict], known_runs: Set[str]) -> list[Verdict]:
    """Delete the files that are not kept, and folders that become empty. Return the verdicts as they were carried out.

    Files that another process works with are kept, and all that is left once there is a run that is not among
    `known_runs`, those before the verdicts: nobody knows what it uses.
    """
    done = []
    for verdict in verdicts:
        why = None if verdict.kept else _delete(root, verdict, known_runs)
        done.append(dataclasses.replace(verdict, kept=True, why=why) if why else verdict)
    return done


def _delete(root: Root, verdict: Verdict, known_runs: Set[str]) -> str | None:
    """Delete the files of a verdict. Return None, or why they are kept after all."""
    try:
        lock = hold_lock(root / LOCKS / verdict.lock, busy, lambda: None) if verdict.lock else contextlib.nullcontext()
        with lock, _unsealed(root, verdict) as unsealed:
            if run_names(root) - known_runs:
                return "a run has begun meanwhile: collect garbage once more"
            in_parallel(StoragePath.remove, [root / name for name in verdict.files])
            unsealed.pop_all()
    except Busy as error:
        return str(error)
    _remove_empty_folders(root, verdict.files)
    return None


@contextlib.contextmanager
def _unsealed(root: Root, verdict: Verdict) -> Iterator[contextlib.ExitStack]:
    """Remove the manifest among the files, so that no run that begins now uses them. At the end, the yielded stack
    writes it again.
    """
    with contextlib.ExitStack() as at_end:
        for file in (root / name for name in verdict.files if posixpath.basename(name) == MANIFEST):
            content = file.read_if_exists()
            if content is not None:
                at_end.callback(file.write, content)
                file.remove()
        yield at_end


def _remove_empty_folders(root: Root, files: Iterable[str]) -> None:
    """Remove the folders of deleted files that are empty; those right below the root only if they are hidden."""
    if root.local:  # object storage has no folders
        parents = {parent for name in files for parent in PurePosixPath(name).parents}
        folders = {parent for parent in parents if len(parent.parts) > 1 or parent.name.startswith(".")}
        for folder in sorted(folders, reverse=True):
            with contextlib.suppress(OSError):  # not empty
                root.local_path(str(folder)).rmdir()
