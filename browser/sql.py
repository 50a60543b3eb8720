"""Run a user's SQL on the tables: read-only, cut to MAX_ROWS rows, and ended after MAX_S seconds."""

from __future__ import annotations

import datetime
import math
import threading
from collections.abc import Mapping
from typing import Any

import duckdb

from browser.tables import Store, Tables, quoted
from pipeline.errors import ConfigError

MAX_ROWS = 1000
MAX_S = 10.0


def run_sql(tables: Tables, stores: Mapping[str, Store], sql: str) -> dict[str, Any]:
    """Return columns and the first MAX_ROWS rows as JSON. Raises ConfigError if the query can't be run."""
    with tables.cursor() as cursor:
        _check(cursor, sql)
        timer = threading.Timer(MAX_S, cursor.interrupt)
        timer.start()
        try:
            found = cursor.execute(sql)
            rows = found.fetchmany(MAX_ROWS + 1)
            columns = [column[0] for column in found.description]
        except duckdb.InterruptException as error:
            raise ConfigError(f"The query took more than {MAX_S:g} s and was ended: ask for less.") from error
        except duckdb.Error as error:
            known = ", ".join(["images", *(quoted(name) for name in stores)])
            raise ConfigError(f"{str(error).splitlines()[0]}. There are the tables {known}.") from error
        finally:
            timer.cancel()
    shown = [[as_json(value) for value in row] for row in rows[:MAX_ROWS]]
    return {"columns": columns, "rows": shown, "more": len(rows) > MAX_ROWS}


def _check(cursor: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise ConfigError unless the SQL is one SELECT."""
    try:
        statements = cursor.extract_statements(sql)
    except duckdb.Error as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    kinds = [statement.type for statement in statements]
    if kinds != [duckdb.StatementType.SELECT]:
        given = ", ".join(str(kind).rpartition(".")[2] for kind in kinds) or "nothing"
        raise ConfigError(f"Only one SELECT is answered, not {given}: the tables are read-only.")


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
