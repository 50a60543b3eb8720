"""The server never fails, whatever the request: schemathesis draws requests from its OpenAPI schema."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from browser.app import create_app
from tests.browser.copies import copied
from tests.conftest import World

schemathesis = pytest.importorskip("schemathesis")
HERE = {"Host": "localhost"}


@pytest.fixture(scope="module")
def schema(world: World, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("fuzzed") / "root"
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(copied(world, root)), headers=HERE)


def test_create_app_never_fails_on_a_request(schema: Any) -> None:
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 11
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def check(case: Any) -> None:
            answer = case.call(headers=HERE)
            assert answer.status_code != 403, "the guard let it through"
            assert answer.status_code < 500, (case.method, case.path, case.query, case.body, answer.text)

        check()
