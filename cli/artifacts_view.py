"""What `must artifacts` prints: tables for people, JSON for programs."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from typing import Any

import rich.console
import yaml
from rich.table import Table

from flows.gc.inventory import StoredArtifact, Verdict
from pipeline.steps.artifact import EXTERNAL_FILES

WIDE = 200
"""Columns of a table in a file or a pipe: nobody wants its lines broken there."""
MOST = 12
"""Files that are shown of an artifact."""


class Page:
    """Standard output."""

    def __init__(self) -> None:
        self.out = rich.console.Console(highlight=False, soft_wrap=True)
        if not self.out.is_terminal:
            self.out.width = WIDE

    def show_list(self, held: Iterable[StoredArtifact]) -> None:
        """A line per artifact."""
        table = Table("step", "fingerprint", "made", "took", "size", "runs that refer to it", box=None, pad_edge=False)
        for each in held:
            about = each.manifest or {}
            made = moment(about["began"]) if about else "unfinished"
            took = f"{about['seconds']:.0f} s" if about else ""
            more = f" and {len(each.users) - 1} more" if len(each.users) > 1 else ""
            users = f"{each.users[0]}{more}" if each.users else "none"
            table.add_row(*each.key, made, took, size(each.size), users)
        self.out.print(table)

    def show_one(self, held: StoredArtifact) -> None:
        """What an artifact is and came from."""
        about = held.manifest or {}
        self.out.print(f"{held.path}: {about['kind']}, {size(held.size)}, digest {about['digest'][:16]}")
        self.out.print(f"made {moment(about['began'])} in {about['seconds']:.1f} s with {software(about)}")
        for title in ("config", "inputs", "counts"):
            self.out.print(f"\n{title}:")
            text = yaml.safe_dump(about[title], sort_keys=False, default_flow_style=None, width=100)
            self.out.print(text.rstrip(), markup=False)
        self.out.print("\nfiles:")
        files = {**about["files"], **about.get(EXTERNAL_FILES, {})}
        for name, facts in list(files.items())[:MOST]:
            self.out.print(f"{size(facts['size']):>10}  {name}", markup=False)
        if len(files) > MOST:
            self.out.print(f"           and {len(files) - MOST} more")
        self.out.print(f"\nruns that refer to it: {', '.join(held.users) or 'none'}")

    def show_verdicts(self, verdicts: Iterable[Verdict], deleted: bool) -> None:
        """What is kept and why, what is not and why, and what that is in all."""
        verdicts = list(verdicts)
        for kept, title in ((True, "Kept"), (False, "Deleted" if deleted else "Not needed")):
            some = [each for each in verdicts if each.kept is kept]
            table = Table(title, "files", "size", "why", box=None, pad_edge=False)
            for each in some:
                table.add_row(each.what, str(len(each.files)), size(each.size), each.why)
            if some:
                self.out.print(table)
            total = size(sum(each.size for each in some))
            self.out.print(f"{title.lower()}: {total} in {sum(len(each.files) for each in some)} files\n")
        if not deleted and not all(each.kept for each in verdicts):
            self.out.print("Nothing was deleted: `must artifacts gc --delete` does it.")

    def show_json(self, value: Any) -> None:
        """For programs."""
        self.out.print(json.dumps(value, indent=1, sort_keys=True), markup=False)


def listed(held: Iterable[StoredArtifact]) -> list[dict[str, Any]]:
    """The list for programs."""
    return [
        {
            "step": each.key[0],
            "fingerprint": each.key[1],
            "sealed": each.manifest is not None,
            "began": (each.manifest or {}).get("began"),
            "seconds": (each.manifest or {}).get("seconds"),
            "bytes": each.size,
            "runs": list(each.users),
        }
        for each in held
    ]


def moment(when: float) -> str:
    """A time for people, in their zone."""
    return datetime.datetime.fromtimestamp(when).astimezone().strftime("%Y-%m-%d %H:%M")


def software(about: dict[str, Any] | Any) -> str:
    """The versions that made an artifact."""
    return ", ".join(f"{name} {version}" for name, version in about["software"].items())


def size(count: int) -> str:
    """Bytes for people."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
