"""Text of recipes: encodings, keys that are there twice, and what is no YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.recipe.yaml_text import parse_yaml, read_text

BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "mine.yaml: not valid YAML: the key 'a' is there twice, in lines 1 and 3: keep one."),
        ("a:\n  t: {x: 1}\n  u: {x: 1}\n  t: {x: 2}\n", "the key 't' is there twice, in lines 2 and 4"),
        ('a: {b: 1, "b": 2}\n', "the key 'b' is there twice"),
        ("- {a: 1}\n- {a: 1, a: 1}\n", "the key 'a' is there twice, in lines 2 and 2"),
        ("[" * 5000, "mine.yaml: lists or mappings lie in one another too deeply to be read."),
        ("a: &a {b: *a}", "mine.yaml: lists or mappings lie in one another too deeply to be read."),
        (BOMB, "mine.yaml: more than 100,000 values, or an alias within what it stands for."),
        ("a: [", "mine.yaml: not valid YAML: while parsing a flow node"),
        ("a: 1\nb: 2024-13-45\n", "mine.yaml: not valid YAML: line 2: '2024-13-45' is no timestamp"),
        ("a: !!int x", "line 1: 'x' is no int"),
        ("a: !!bool x", "line 1: 'x' is no bool"),
        ("a: !!timestamp x", "line 1: 'x' is no timestamp"),
        ("a: !!python/name:os.system x", "could not determine a constructor for the tag"),
        ("a: 1\n---\nb: 1\n", "mine.yaml: not valid YAML: expected a single document"),
    ],
)
def test_parse_yaml_refuses_what_is_not_clear(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_yaml(text, "mine.yaml")
    assert message in str(raised.value)


def test_parse_yaml_merges_and_shares_as_yaml_says() -> None:
    lines = (
        "base: &base {lr: 1, steps: 2}",
        "one: {<<: *base, lr: 3}",
        "two: &two",
        "  <<: [*base]",
        "  lr: 4",
        "three: {<<: *two, steps: 5}",
    )
    found = parse_yaml("\n".join(lines), "mine.yaml")
    assert found["one"] == {"lr": 3, "steps": 2}
    assert found["two"] == {"lr": 4, "steps": 2}
    assert found["three"] == {"lr": 4, "steps": 5}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_read_text_knows_the_encodings_of_editors(tmp_path: Path, encoding: str) -> None:
    start = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / "mine.yaml").write_bytes(f"{start}name: caf\u00e9\r\n".encode(encoding))
    assert parse_yaml(read_text(tmp_path / "mine.yaml"), "mine.yaml") == {"name": "caf\u00e9"}


def test_read_text_names_line_and_byte_of_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes("a: 1\nname: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"mine.yaml: line 2 has the byte 0xe9, which is no text in UTF-8: save it"):
        read_text(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match=r"missing.yaml: can't be read \(No such file or directory\)"):
        read_text(tmp_path / "missing.yaml")
