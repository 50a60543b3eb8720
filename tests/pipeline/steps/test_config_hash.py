"""A step's configuration: its values by their keys."""

from __future__ import annotations

from pipeline.steps.config_hash import flat


def test_flat_has_nested_values_by_their_keys() -> None:
    assert flat(
        {"seed": 1, "source": {"path": "a", "more": {"kind": "coco"}}, "none": {}, "sets": ["a", {"b": 1}]}
    ) == {
        "seed": 1,
        "source.path": "a",
        "source.more.kind": "coco",
        "sets": ["a", {"b": 1}],
    }
