"""Read the fenced blocks of the project's Markdown pages."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import PROJECT

DOCS = PROJECT / "docs"
PAGES = ["README.md", *sorted(str(path.relative_to(PROJECT)) for path in DOCS.rglob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.{8,}) -->")
TITLE = re.compile(r'title="([^"]+)"')


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page; `not_run` is the reason in the comment before it, `title` the file it is saved as."""

    page: str
    line: int
    language: str
    title: str
    text: str
    not_run: str

    def commands(self) -> Iterator[str]:
        """Yield the commands of a shell block, continued lines joined, comments and prompts left out."""
        for line in self.text.replace("\\\n", " ").splitlines():
            command = line.removeprefix("$ ").strip()
            if command and not command.startswith("#"):
                yield command


def blocks(page: str) -> list[Block]:
    """Return all fenced blocks of a page. A block without a language whose lines have prompts is a shell block."""
    found, lines = [], (PROJECT / page).read_text("utf-8").splitlines()
    opened = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = number
            continue
        text, info = "\n".join(lines[opened + 1 : number]), lines[opened].removeprefix("```")
        language = info.split(" ")[0] or ("bash" if text.startswith("$ ") else "")
        title, reason = TITLE.search(info), NOT_RUN.fullmatch(lines[opened - 1]) if opened else None
        found.append(
            Block(page, opened + 1, language, title[1] if title else "", text, reason["reason"] if reason else "")
        )
        opened = None
    return found


def commands_of(page: str) -> Iterator[str]:
    """Yield every command of a page's shell blocks that is not marked as not run."""
    for block in blocks(page):
        if block.language == "bash" and not block.not_run:
            yield from block.commands()


def local_links(page: str) -> Iterator[tuple[str, str]]:
    """Yield (path, anchor) of every link and picture of a page that leads to a file of the project."""
    text = re.sub(r"```.*?```", "", (PROJECT / page).read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def resolve(page: str, path: str) -> Path:
    """Return the file that a link of a page leads to."""
    here = PROJECT / page
    return (here.parent / path).resolve() if path else here
