"""Errors: exit codes that a shell script may rely on, and help with misspelt names."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError, DataError, MustError, Stopped, choose


def test_each_kind_of_error_has_its_exit_code() -> None:
    assert {kind.exit_code for kind in (ConfigError, DataError, Stopped, MustError)} == {2, 3, 75, 1}
    assert (ConfigError.exit_code, DataError.exit_code, Stopped.exit_code) == (2, 3, 75)
    assert all(issubclass(kind, MustError) for kind in (ConfigError, DataError, Stopped))


def test_a_known_name_is_chosen() -> None:
    assert choose("coco", ["masks", "coco"], "Kind") == "coco"


def test_an_unknown_name_is_quoted_with_the_nearest_and_all_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        choose("cocoo", ["masks", "coco"], "Kind")
    assert str(caught.value) == "Kind 'cocoo' is unknown. Did you mean 'coco'? Known: coco, masks."


def test_nothing_is_guessed_where_nothing_is_near() -> None:
    with pytest.raises(ConfigError, match=r"Kind 'zebra' is unknown\. Known: coco, masks\."):
        choose("zebra", ["masks", "coco"], "Kind")
    with pytest.raises(ConfigError, match=r"Known: none\."):
        choose("zebra", [], "Kind")
