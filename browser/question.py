"""Questions in SQL, as a user writes them: they see the tables, change nothing and end in time."""

from __future__ import annotations

import datetime
import math
import threading
from collections.abc import Mapping
from typing import Any

import duckdb

from browser.tables import Store, Tables, quoted
from pipeline.errors import ConfigError

MOST_ROWS = 1000
MOST_S = 10.0
"""A question that takes longer is ended."""


def ask_freely(tables: Tables, stores: Mapping[str, Store], sql: str) -> dict[str, Any]:
    """The first MOST_ROWS rows of an answer. ConfigError says what is wrong with the question."""
    with tables.cursor() as cursor:
        _check(cursor, sql)
        late = threading.Timer(MOST_S, cursor.interrupt)
        late.start()
        try:
            found = cursor.execute(sql)
            rows = found.fetchmany(MOST_ROWS + 1)
            columns = [about[0] for about in found.description]
        except duckdb.InterruptException as error:
            raise ConfigError(f"The query took more than {MOST_S:g} s and was ended: ask for less.") from error
        except duckdb.Error as error:
            known = ", ".join(["images", *(quoted(name) for name in stores)])
            raise ConfigError(f"{str(error).splitlines()[0]}. There are the tables {known}.") from error
        finally:
            late.cancel()
    plain = [[_plain(value) for value in row] for row in rows[:MOST_ROWS]]
    return {"columns": columns, "rows": plain, "more": len(rows) > MOST_ROWS}


def _check(cursor: duckdb.DuckDBPyConnection, sql: str) -> None:
    """ConfigError unless it is one question."""
    try:
        statements = cursor.extract_statements(sql)
    except duckdb.Error as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    kinds = [statement.type for statement in statements]
    if kinds != [duckdb.StatementType.SELECT]:
        told = ", ".join(str(kind).rpartition(".")[2] for kind in kinds) or "nothing"
        raise ConfigError(f"Only one SELECT is answered, not {told}: nothing is written here.")


def _plain(value: Any) -> Any:
    """A value as JSON knows them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, datetime.datetime | datetime.date | datetime.time | datetime.timedelta | bytes):
        return str(value)
    return value if isinstance(value, str | int | bool | None) else str(value)
