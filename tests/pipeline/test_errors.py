"""Errors: exit codes that a shell script may rely on, and help with misspelt names."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError, DataError, MustError, Stopped, error_context, require_one_of


def test_each_kind_of_error_has_its_exit_code() -> None:
    assert {kind.exit_code for kind in (ConfigError, DataError, Stopped, MustError)} == {2, 3, 75, 1}
    assert (ConfigError.exit_code, DataError.exit_code, Stopped.exit_code) == (2, 3, 75)
    assert all(issubclass(kind, MustError) for kind in (ConfigError, DataError, Stopped))


def test_a_known_name_is_chosen() -> None:
    assert require_one_of("coco", ["masks", "coco"], "Kind") == "coco"


def test_an_unknown_name_is_quoted_with_the_nearest_and_all_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        require_one_of("cocoo", ["masks", "coco"], "Kind")
    assert str(caught.value) == "Kind 'cocoo' is unknown. Did you mean 'coco'? Known: coco, masks."


def test_of_many_names_those_that_are_near_are_shown() -> None:
    names = [f"model_{number}" for number in range(100)]
    with pytest.raises(ConfigError, match=r"Did you mean 'model_\d+'\? Known: .* and 80 more\.") as caught:
        require_one_of("model_7x", names, "Model")
    assert "model_7," in str(caught.value)


def test_an_error_is_told_with_its_place_and_keeps_its_kind() -> None:
    with pytest.raises(DataError, match=r"^data\.pool: gone$"), error_context("data.pool"):
        raise DataError("gone")
    with pytest.raises(KeyError), error_context("data.pool"):
        raise KeyError("not ours")


def test_nothing_is_guessed_where_nothing_is_near() -> None:
    with pytest.raises(ConfigError, match=r"Kind 'zebra' is unknown\. Known: coco, masks\."):
        require_one_of("zebra", ["masks", "coco"], "Kind")
    with pytest.raises(ConfigError, match=r"Known: none\."):
        require_one_of("zebra", [], "Kind")
