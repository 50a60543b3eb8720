"""Manifests: every field that others read is checked, and files lie below the root."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.steps.artifact import EXTERNAL_FILES, SCHEMA_VERSION, parse_manifest

FACTS = {"size": 1, "sha256": "0"}


def manifest_fields() -> dict[str, Any]:
    """Return a manifest with all that others read."""
    texts = dict.fromkeys(("kind", "step", "fingerprint", "digest"), "x")
    mappings: dict[str, Any] = {key: {} for key in ("config", "inputs", "counts", "software", "files", EXTERNAL_FILES)}
    return {**texts, **mappings, "section": ["x"], "schema": SCHEMA_VERSION, "version": 1, "began": 1.5, "seconds": 0.5}


@pytest.mark.parametrize("section", ["files", EXTERNAL_FILES])
@pytest.mark.parametrize("name", ["../other/x", "/etc/passwd", "a/../../x", ".."])
def test_parse_manifest_refuses_files_that_are_not_below_the_root(section: str, name: str) -> None:
    manifest = manifest_fields() | {"files": {"a..b/c": FACTS}}
    assert parse_manifest(json.dumps(manifest).encode(), "manifest.json") == manifest
    manifest[section] = {name: FACTS}
    with pytest.raises(DataError, match=rf"manifest\.json: names the file {re.escape(repr(name))}, which is not below"):
        parse_manifest(json.dumps(manifest).encode(), "manifest.json")


def wrong_fields() -> Iterator[tuple[str, object]]:
    """Yield a key of a manifest, and a value of a type that it can't have."""
    for key, right in manifest_fields().items():
        for value in (None, 5, "text", [], [1], {"a": 1}, {"a": {"size": -1, "sha256": "0"}}):
            is_right = isinstance(value, type(right)) or (isinstance(right, float) and isinstance(value, int))
            if not is_right or value == [1] or (right == {} and key not in ("config", "counts")):
                yield key, value


@pytest.mark.parametrize(("key", "value"), [pair for pair in wrong_fields() if pair[0] != "schema"])
def test_parse_manifest_refuses_fields_of_other_types(key: str, value: object) -> None:
    fields = manifest_fields()
    with pytest.raises(DataError, match=rf"^manifest\.json: {key}.*Delete this file"):
        parse_manifest(json.dumps(fields | {key: value}).encode(), "manifest.json")
    del fields[key]
    if key != EXTERNAL_FILES:
        with pytest.raises(DataError, match=rf"^manifest\.json: {key}: Field required"):
            parse_manifest(json.dumps(fields).encode(), "manifest.json")


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"schema": [1], "software": 5}', "", '{"schema": 1', "\0" * 9])
def test_parse_manifest_refuses_what_is_none(text: str) -> None:
    with pytest.raises(DataError, match=r"^manifest\.json: .*Delete this file, as `must artifacts verify"):
        parse_manifest(text.encode(), "manifest.json")
