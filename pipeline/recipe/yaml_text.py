"""Read YAML text: in UTF-8, or UTF-16 as PowerShell writes it; a key that is there twice is an error."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError

MOST_VALUES = 100_000
"""In a recipe, with those that aliases stand for."""

ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""Encodings by the bytes that a file in them begins with; others are UTF-8."""
MERGE = "tag:yaml.org,2002:merge"


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader; but of two entries with one key, as YAML forbids, it does not take the last."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, TypeError) as error:  # 2024-13-45, !!int x, !!bool x
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: {node.value!r} is no {node.tag.rpartition(':')[2]}") from error

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        assert node is not None
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                line = key.start_mark.line + 1
                if key.value in lines:
                    first = lines[key.value]
                    raise yaml.YAMLError(f"the key {key.value!r} is there twice, in lines {first} and {line}: keep one")
                lines[key.value] = line
        return node


def parse_yaml(text: str, origin: str) -> Any:
    """Return the content of YAML text. Raises ConfigError, beginning with `origin`, if it is no YAML."""
    try:
        content = _UniqueKeyLoader(text).get_single_data()
        if sum(1 for _ in itertools.islice(_values(content), MOST_VALUES + 1)) > MOST_VALUES:
            raise ConfigError(f"{origin}: more than {MOST_VALUES:,} values, or an alias within what it stands for.")
        return content
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not valid YAML: {error}.") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: lists or mappings lie in one another too deeply to be read.") from error


def _values(content: Any) -> Iterator[Any]:
    """Yield all values, those of aliases once for each alias; without end if one is within what it stands for."""
    yield content
    for item in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _values(item)


def read_text(path: Path) -> str:
    """Return the text of a file. Raises ConfigError, with the line, if it can't be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}).") from error
    encoding = next((encoding for start, encoding in ENCODINGS.items() if data.startswith(start)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}: line {line} has the byte 0x{data[error.start]:02x}, which is no text in UTF-8: save it in UTF-8."
        ) from error
