"""Generate the reference of all commands from the typer application.

`python -m cli.reference > docs/reference/cli.md` updates the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from cli.events import FIELDS
from cli.main import app
from pipeline.errors import ConfigError, DataError, Shortage, Stopped

HEAD = f"""\
# Commands

Every command has `--help`. All commands end with one of these exit codes:

| code | meaning |
|---|---|
| 0 | done |
| {ConfigError.exit_code} | the recipe, an option or the environment needs a change |
| {DataError.exit_code} | a file on disk needs a change |
| {Shortage.exit_code} | this machine is short of memory, space, open files or the like; make room and run again |
| {Stopped.exit_code} | stopped; run the same command again to go on |
| 1 | anything else |
"""
EVENTS = """\
## Events of `must run --json`

Standard output holds one JSON object a line and nothing else; what libraries print, and the message of an error, go to
standard error. Every event has `event` and `time` (seconds since 1970, UTC); those from `started` to `trackers`, not
`progress`, are also in the run's `events.jsonl`. Exit codes are the same as without `--json`. Pass over events and
fields that you don't know.

| event | meaning and fields |
|---|---|"""


def markdown() -> str:
    """Return the reference as one Markdown page, a section per command."""
    return "\n".join([HEAD, *_sections(typer.main.get_command(app), "must"), EVENTS, *_event_rows(), ""])


def _event_rows() -> Iterator[str]:
    yield from (f"| `{event}` | {about} |" for event, about in FIELDS.items())


def _sections(command: Any, name: str) -> Iterator[str]:
    """Yield the sections of a click command, or those of a group's commands."""
    for child in getattr(command, "commands", {}).values():
        yield from _sections(child, f"{name} {child.name}")
    if hasattr(command, "commands"):
        return
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option" and param.name != "help"]
    usage = [name, *map(_argument, arguments), *(["[OPTIONS]"] if options else [])]
    yield f"## {name}\n\n```text\n{' '.join(usage)}\n```\n\n{_one_line(command.help)}\n"
    rows = [f"| `{_argument(param)}` | {_meaning(param)} |" for param in arguments]
    rows += [f"| `{_option(param)}` | {_meaning(param)} |" for param in options]
    if rows:
        yield "\n".join(["| argument or option | meaning |", "|---|---|", *rows, ""])


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    shown = name if parameter.required else f"[{name}]"
    return shown if parameter.nargs == 1 else f"{shown}..."


def _option(parameter: Any) -> str:
    names = " / ".join(sorted(parameter.opts, key=len))
    return names if parameter.is_flag else f"{names} {parameter.metavar or parameter.name.upper()}"


def _meaning(parameter: Any) -> str:
    parts = [_one_line(parameter.help)]
    if isinstance(parameter.show_default, str):
        parts.append(f"Default: {parameter.show_default}.")
    elif parameter.default not in (None, False, []) and not callable(parameter.default):
        parts.append(f"Default: `{parameter.default}`.")
    return " ".join(part for part in parts if part)


def _one_line(text: str | None) -> str:
    """Join lines, and escape `|`, which would end a table cell."""
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    print(markdown(), end="")
