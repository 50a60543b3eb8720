"""The check of the task runner that a recipe names: the package it needs, and its address."""

from __future__ import annotations

import pytest

from flows.run.runner_check import check_runner
from pipeline.errors import ConfigError
from pipeline.recipe.runtime import RuntimeConfig


def test_check_runner_names_the_extra_of_a_missing_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"runner is 'ray', which needs the extra ray: uv pip install -e '.*\[ray\]'\. Without"
    ):
        check_runner(RuntimeConfig(runner="ray"))


def test_check_runner_refuses_an_address_for_a_local_runner() -> None:
    with pytest.raises(ConfigError, match=r"address is 'ray://head:10001', but runner 'process' works on this machine"):
        check_runner(RuntimeConfig(runner="process", address="ray://head:10001"))
