"""Queries in SQL: bounded in every way, and without effect on anything."""

from __future__ import annotations

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from browser.answers import Answers

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/*')",
        "COPY images TO '/tmp/out.csv'",
        "ATTACH '/tmp/other.db'",
        "SET enable_external_access = true",
        "DROP TABLE image_rows",
        "DELETE FROM image_rows",
        "INSERT INTO failures VALUES (1, 'a', 'ok', 'b')",
        "SELECT 1; DROP TABLE image_rows",
        "WITH x AS (COPY (SELECT 1) TO '/tmp/out.parquet') SELECT 1",
        "WITH x AS (INSERT INTO failures VALUES (1) RETURNING id) SELECT * FROM x",
        "SELECT * FROM (WITH x AS (DELETE FROM images RETURNING id) SELECT * FROM x)",
        "CREATE TABLE mine AS SELECT 1",
        "PRAGMA database_list",
        "INSTALL httpfs",
        "LOAD httpfs",
        "EXPORT DATABASE '/tmp/all'",
        "CALL enable_profiling()",
        "EXPLAIN ANALYZE DELETE FROM placed",
        "SELECT answers FROM answers",
        "not SQL",
        "SELECT * FROM enable_logging(storage='file')",
        "SELECT (SELECT count(*) FROM duckdb_settings())",
        "SELECT * FROM read_parquet('/dev/fd/0')",
        "",
        ";",
        "SELECT * FROM nothing",
        "SELECT 1/0::INTEGER, error('told')",
    ],
)
def test_sql_changes_nothing_and_reaches_no_file(page: TestClient, answers: Answers, sql: str) -> None:
    before = answers.tables.query("SELECT count(*) FROM image_rows")
    answer = page.post("/api/sql", json={"sql": sql})
    assert answer.status_code == 400, answer.json()
    assert answer.json()["error"]
    assert answers.tables.query("SELECT count(*) FROM image_rows") == before


def test_sql_tables_are_joined_by_id(page: TestClient, answers: Answers) -> None:
    for table in ("failures", "rejected", *answers.stores):
        sql = f'SELECT key FROM images JOIN "{table}" USING (id)'.replace("key", "images.key")
        assert page.post("/api/sql", json={"sql": sql}).status_code == 200, table
    told = page.post("/api/sql", json={"sql": 'SELECT * FROM images JOIN failures USING ("key")'}).json()["error"]
    assert "which `id` joins" in told


def test_sql_ends_a_slow_query(page: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("browser.sql.MAX_S", 0.3)
    answer = page.post(
        "/api/sql", json={"sql": "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b"}
    )
    assert answer.status_code == 400
    assert "took more than 0.3 s" in answer.json()["error"]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT repeat('x', 2000000000)", "more than 1 GB of memory"),
        ("SELECT list(range) FROM range(500000000)", "more than 1 GB of memory"),
        ("SELECT repeat('x', 100000) FROM range(1000)", "The answer has more than 16 MB"),
        ("SELECT " + "(" * 40_000 + "1" + ")" * 40_000, ""),
        ("SELECT " + "NOT " * 20_000 + "true", ""),
        ("SELECT '\\ud800'", "unable to parse raw data as a unicode string"),
    ],
)
def test_sql_that_asks_for_too_much_leaves_the_page_up(page: TestClient, sql: str, says: str) -> None:
    answer = page.post("/api/sql", content=b'{"sql": "%s"}' % sql.encode(), headers=JSON)
    assert answer.status_code in (400, 422)
    assert says in answer.json()["error"]
    assert page.post("/api/sql", json={"sql": "SELECT 1"}).json()["rows"] == [[1]]


@pytest.mark.parametrize(
    ("sql", "row"),
    [
        ("SELECT interval '100000000 years', 1; -- as text", ["100000000 years", "1"]),
        ("SELECT '290000-01-01'::DATE", ["290000-01-01"]),
        ("SELECT 2::HUGEINT ** 100, 'infinity'::TIMESTAMP", [2.0**100, "9999-12-31 23:59:59.999999"]),
        ("SELECT 170141183460469231731687303715884105727", [170141183460469231731687303715884105727]),
        ("SELECT map {1: 'a'}, {'b': [1.5, 'nan'::DOUBLE]}, 'ab'::BLOB, uuid() IS NULL", None),
    ],
)
def test_sql_shows_values_that_json_or_python_lack_as_text(page: TestClient, sql: str, row: list[object]) -> None:
    answer = page.post("/api/sql", json={"sql": sql})
    assert answer.status_code == 200, answer.json()
    assert row is None or answer.json()["rows"] == [row]


def test_sql_sees_what_has_changed(page: TestClient, answers: Answers) -> None:
    sql = {"sql": "SELECT count(*) FROM failures WHERE id = 99999"}
    assert page.post("/api/sql", json=sql).json()["rows"] == [[0]]
    answers.tables.insert("failures", pa.table({"id": pa.array([99999], pa.int32())}))
    assert page.post("/api/sql", json=sql).json()["rows"] == [[1]]
    answers.tables.delete("failures", range(99999, 100000))
    assert page.post("/api/sql", json=sql).json()["rows"] == [[0]]


def test_sql_cuts_long_results(page: TestClient) -> None:
    found = page.post(
        "/api/sql", json={"sql": "SELECT range, 'nan'::FLOAT, [1, 2], TIMESTAMP '2026-01-01' FROM range(2000)"}
    )
    assert len(found.json()["rows"]) == 1000
    assert found.json()["more"] is True
    assert found.json()["rows"][1] == [1, None, [1, 2], "2026-01-01 00:00:00"]
