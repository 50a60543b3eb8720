"""The page of the tiny world, which tests only look at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from browser.answers import Answers
from browser.app import create_app
from browser.loading import Loading
from tests.conftest import World


@pytest.fixture(scope="module")
def answers(world: World) -> Answers:
    loading = Loading(world.workspace.root)
    loading.refresh()
    return Answers(loading)


@pytest.fixture(scope="module")
def page(answers: Answers) -> Iterator[TestClient]:
    with TestClient(create_app(answers), "http://localhost") as client:
        yield client
