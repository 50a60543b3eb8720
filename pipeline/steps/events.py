"""Read the events of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.steps.artifact import parse_lines


def parse_events(text: bytes) -> list[dict[str, Any]]:
    """Return the events in an `events.jsonl`. Lines that are damaged, as by a kill while writing, are left out."""
    return [line for line in parse_lines(text) if _is_event(line)]


def _is_event(line: Mapping[str, Any]) -> bool:
    """Return True for a line with the name of an event, and with the step of an artifact."""
    names = [line.get("event"), *((line["artifact"], line.get("step")) if line.get("artifact") else ())]
    return all(isinstance(name, str) for name in names)
