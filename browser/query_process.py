"""Answer one SQL query in a process of its own, which can't take more than its share of memory, and reaches no file.

Reads a request from standard input and writes the answer to standard output, both JSON. Nothing else of the project is
imported here, so that the process starts at once.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import duckdb

MAX_ROWS = 1000
MAX_ANSWER_BYTES = 16 << 20
MAX_MEMORY_BYTES = 2 << 30
"""Of addresses, DuckDB's own libraries included."""
MAX_CPU_S = 60
"""In case that nobody is left to end the process."""
TABLE_FUNCTIONS = ("generate_series", "range", "unnest")
"""Those that a query may call; others read files, or change how the database works."""
QUERY_NODES = ("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE")
"""The parts of a statement that only read: `WITH x AS (COPY ...)` is a SELECT, too."""
CONFIG: dict[str, Any] = {
    "memory_limit": "1GB",
    "threads": 2,
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
}
TOO_MUCH = "The query takes more than 1 GB of memory: ask for less."


class Refused(Exception):
    """A query that is not answered, and why."""


def answer(views: Mapping[str, str], sql: str) -> dict[str, Any]:
    """Return the columns and the first MAX_ROWS rows of a query, as JSON.

    Args:
        views: The Parquet file of each table, by the table's name, quoted for SQL.
        sql: A SELECT.

    Raises Refused, and what DuckDB raises.
    """
    connection = duckdb.connect(config=CONFIG)
    _check(connection, sql)
    for name, file in views.items():
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{file}')")
    connection.execute("SET enable_progress_bar = false")
    connection.execute(f"SET allowed_paths = {list(views.values())}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    found = connection.execute(sql)
    columns = [column[0] for column in found.description]
    try:
        rows = list(_shown(iter(found.fetchone, None)))
    except (OverflowError, ValueError):  # a value that Python has no type for
        [[text]] = connection.execute("SELECT json_deserialize_sql(json_serialize_sql(?))", [sql]).fetchall()
        found = connection.execute(f"SELECT COLUMNS(*)::VARCHAR FROM ({text})")  # without comments and semicolon
        rows = list(_shown(iter(found.fetchone, None)))
    return {"columns": columns, "rows": rows[:MAX_ROWS], "more": len(rows) > MAX_ROWS}


def _shown(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[Any]]:
    """Yield the first rows as JSON, one more than are shown. Raises Refused if they are too large to be shown."""
    size = 0
    for row in itertools.islice(rows, MAX_ROWS + 1):
        shown = [as_json(value) for value in row]
        size += len(json.dumps(shown))
        if size > MAX_ANSWER_BYTES:
            raise Refused(f"The answer has more than {MAX_ANSWER_BYTES >> 20} MB: ask for fewer rows or columns.")
        yield shown


def _check(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise Refused unless the SQL is one SELECT, nothing in it writes, and it calls only TABLE_FUNCTIONS."""
    kinds = [statement.type for statement in connection.extract_statements(sql)]
    if kinds != [duckdb.StatementType.SELECT]:
        given = ", ".join(str(kind).rpartition(".")[2] for kind in kinds) or "nothing"
        raise Refused(f"Only one SELECT is answered, not {given}: the tables are read-only.")
    [[text]] = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()
    tree = json.loads(text)
    if tree["error"]:
        raise Refused(f"The query can't be checked: {tree.get('error_message', '')}")
    for node in _nodes(tree):
        kind = str(node.get("type"))
        name = str(node["function"]["function_name"]) if kind == "TABLE_FUNCTION" else ""
        if name and name not in TABLE_FUNCTIONS:
            raise Refused(f"The table function {name!r} is not among those of a query, {', '.join(TABLE_FUNCTIONS)}.")
        if kind.endswith("_NODE") and kind not in QUERY_NODES:
            raise Refused(f"Only queries are answered, no {kind.partition('_')[0]} in one: the tables are read-only.")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield all mappings in a parsed query."""
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            yield node
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node


def as_json(value: Any) -> Any:
    """Return a value as JSON: null for NaN and infinity, text for types that JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, datetime.datetime | datetime.date | datetime.time | datetime.timedelta | bytes):
        return str(value)
    return value if isinstance(value, str | int | bool | None) else str(value)


def _set_limits() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # other systems have no such limit
        import resource  # noqa: PLC0415

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # nothing is written but the answer, into a pipe


def main() -> None:
    """Answer the request: {"views": ..., "sql": ...} with what `answer` returns, or {"error": ...}."""
    _set_limits()
    request = json.load(sys.stdin)
    try:
        result = json.dumps(answer(request["views"], request["sql"]))
    except (MemoryError, duckdb.OutOfMemoryException):
        result = json.dumps({"error": TOO_MUCH})
    except (Refused, duckdb.Error, UnicodeError, RecursionError, RuntimeError) as error:
        result = json.dumps({"error": str(error).partition("\n")[0] or type(error).__name__})
    sys.stdout.write(result)


if __name__ == "__main__":
    main()
