"""Format numbers for people: durations, counts and shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DASH = "\N{EN DASH}"
"""Shown where there is no number."""
MOST_SUFFIXES = 5
"""Suffixes of files that a line names."""


def duration(seconds: float) -> str:
    """Return seconds as people write them: `< 0.1 s`, `0.4 s`, `25 s`, `8 min 30 s`, `3 h 05 min`."""
    if seconds < 0.05:
        return "< 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: int) -> str:
    """Return `1,234`, or a dash for zero."""
    return f"{number:,}" if number else DASH


def plural(number: int, noun: str, many: str | None = None) -> str:
    """Return `1 image`, `1,234 images`."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def describe_suffixes(counts: Mapping[str, int]) -> str:
    """Return `5 .txt, 1 without a suffix`, at most MOST_SUFFIXES of them, the most frequent first."""
    largest = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    named = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in largest[:MOST_SUFFIXES])
    return f"{named}{', ...' if len(largest) > MOST_SUFFIXES else ''}"


def percent(share: float) -> str:
    """Return a share in percent, with a decimal where it is small and not zero."""
    if 0 < share < 0.0005:
        return "< 0.1%"
    return f"{share:.1%}" if 0 < share < 0.0995 else f"{share:.0%}"


def teacher_scores(counts: Mapping[str, Any]) -> str:
    """Return how good a teacher is, given the counts of its artifact, beside the trivial baseline; "" if not known."""
    name = counts.get("metric")
    if name is None:
        return ""
    if name not in counts["scores"]:
        return "its held-out labels define no metric"
    constant = counts["baseline"].get(name)
    beside = "" if constant is None else f", trivial baseline {constant:.3f}"
    return f"{name} {counts['scores'][name]:.3f}{beside}, {plural(counts['held_out'], 'held-out image')}"
