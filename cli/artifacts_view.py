"""Print artifacts, for people as tables and for programs as JSON."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any

import rich.console
import yaml
from rich.table import Table

from flows.gc.inventory import StoredArtifact, Verdict
from pipeline.steps.artifact import EXTERNAL_FILES

PIPE_COLUMNS = 200
"""Width of a table in a file or a pipe, wide enough that lines are not wrapped."""
SHOWN_FILES = 12
"""Number of an artifact's files that are listed."""


def output() -> rich.console.Console:
    """Return standard output, wide if it is not a terminal."""
    console = rich.console.Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    return console


def print_table(table: Sequence[Sequence[str]]) -> None:
    """Print rows of cells, the first row as the heading."""
    head, *rows = table
    shown = Table(*head, box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*row)
    output().print(shown, markup=False)


def print_artifacts(artifacts: Sequence[StoredArtifact]) -> None:
    """Print a table with a line per artifact."""
    rows = [["step", "fingerprint", "made", "took", "size", "used by runs"]]
    for artifact in artifacts:
        manifest = artifact.manifest or {}
        made = format_time(manifest["began"]) if manifest else "damaged" if artifact.damage else "unfinished"
        took = f"{manifest['seconds']:.0f} s" if manifest else ""
        more = f" and {len(artifact.users) - 1} more" if len(artifact.users) > 1 else ""
        users = f"{artifact.users[0]}{more}" if artifact.users else "none"
        rows.append([*artifact.key, made, took, format_bytes(artifact.size), users])
    print_table(rows)
    for artifact in artifacts:
        if artifact.damage:
            print(artifact.damage)


def print_artifact(artifact: StoredArtifact) -> None:
    """Print what one artifact is and what it was made from."""
    console, manifest = output(), artifact.manifest or {}
    software = ", ".join(f"{name} {version}" for name, version in manifest["software"].items())
    size = format_bytes(artifact.size)
    console.print(f"{artifact.path}: {manifest['kind']}, {size}, digest {manifest['digest'][:16]}")
    console.print(f"made {format_time(manifest['began'])} in {manifest['seconds']:.1f} s with {software}")
    for title in ("config", "inputs", "counts"):
        console.print(f"\n{title}:")
        text = yaml.safe_dump(manifest[title], sort_keys=False, default_flow_style=None, width=100)
        console.print(text.rstrip(), markup=False)
    console.print("\nfiles:")
    files = {**manifest["files"], **manifest.get(EXTERNAL_FILES, {})}
    for name, facts in list(files.items())[:SHOWN_FILES]:
        console.print(f"{format_bytes(facts['size']):>10}  {name}", markup=False)
    if len(files) > SHOWN_FILES:
        console.print(f"           and {len(files) - SHOWN_FILES} more")
    console.print(f"\nused by runs: {', '.join(artifact.users) or 'none'}")


def print_verdicts(verdicts: Iterable[Verdict], deleted: bool) -> None:
    """Print what garbage collection keeps and what it does not, each with the reason and total size."""
    console, verdicts = output(), list(verdicts)
    for kept, title in ((True, "Kept"), (False, "Deleted" if deleted else "Not needed")):
        chosen = [verdict for verdict in verdicts if verdict.kept is kept]
        if chosen:
            rows = [[each.what, str(len(each.files)), format_bytes(each.size), each.why] for each in chosen]
            print_table([[title, "files", "size", "why"], *rows])
        total = format_bytes(sum(verdict.size for verdict in chosen))
        console.print(f"{title.lower()}: {total} in {sum(len(verdict.files) for verdict in chosen)} files\n")
    if not deleted and not all(verdict.kept for verdict in verdicts):
        console.print("Nothing was deleted. To delete it: `must artifacts gc --delete`")


def artifact_records(artifacts: Iterable[StoredArtifact]) -> list[dict[str, Any]]:
    """Return a JSON-ready record per artifact."""
    return [
        {
            "step": artifact.key[0],
            "fingerprint": artifact.key[1],
            "sealed": artifact.manifest is not None,
            "damage": artifact.damage and str(artifact.damage),
            "began": (artifact.manifest or {}).get("began"),
            "seconds": (artifact.manifest or {}).get("seconds"),
            "bytes": artifact.size,
            "runs": list(artifact.users),
        }
        for artifact in artifacts
    ]


def format_time(seconds: float) -> str:
    """Format seconds since the epoch as a local date and time."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def format_bytes(count: float) -> str:
    """Format a number of bytes with a decimal unit.

    >>> format_bytes(1500)
    '1.5 kB'
    """
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"
