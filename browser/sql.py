"""Answer a user's SQL: read-only, in a process of its own that is ended after MAX_S seconds.

The process reads copies of the tables that the query names, as Parquet files that have no name on disk.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from typing import IO, Any

import pyarrow.parquet as pq

from browser.query_process import TOO_MUCH
from browser.tables import Store, Tables, quoted
from pipeline.errors import ConfigError

MAX_S = 10.0
MAX_AT_ONCE = 4
"""Queries that are answered at the same time; others wait."""
SHARED_TABLES = ("images", "failures", "rejected")
BATCH_ROWS = 100_000
CAN_SEAL = hasattr(os, "memfd_create")
"""Linux can forbid all writing to a file in memory."""


class Queries:
    """Answers queries about the tables, from any thread.

    Example:
        Queries(tables).answer("SELECT count(*) FROM images", {})["rows"]
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._lock, self._turn = threading.Lock(), threading.BoundedSemaphore(MAX_AT_ONCE)
        self._files: dict[str, tuple[int, IO[bytes]]] = {}
        """By table, the version of the tables that was copied, and the file."""

    def answer(self, sql: str, stores: Mapping[str, Store]) -> dict[str, Any]:
        """Return columns and the first rows as JSON. Raises ConfigError if the query can't be answered."""
        tables = {name: name for name in SHARED_TABLES} | {name: store.name for name, store in stores.items()}
        with self._turn:
            answer = _run(*self._start(sql, tables))
        if "error" in answer:
            known = ", ".join(map(quoted, tables))
            raise ConfigError(f"{answer['error']} There are the tables {known}, which `id` joins.")
        return answer

    def _start(self, sql: str, tables: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], bytes]:
        """Start the process that answers, with files of the tables that the query may name, and return its request."""
        written = sql.casefold()
        with self._lock:  # until the process has the files, nobody replaces them
            named = {name: table for name, table in tables.items() if quoted(name)[1:-1].casefold() in written}
            files = {table: self._file(table).fileno() for table in dict.fromkeys(named.values())}
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "browser.query_process"],  # no module of the current folder
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=list(files.values()),
                start_new_session=True,
            )
        request = {"views": {quoted(name): f"/dev/fd/{files[table]}" for name, table in named.items()}, "sql": sql}
        return process, json.dumps(request).encode()

    def _file(self, table: str) -> IO[bytes]:
        """Return a table as a Parquet file: the one that was written last, unless the tables have changed since."""
        version = self._tables.version
        known = self._files.get(table)
        if known and known[0] == version:
            return known[1]
        file = _unnamed_file()
        with self._tables.cursor() as cursor:
            batches = cursor.sql(f"SELECT * FROM {quoted(table)}").to_arrow_reader(BATCH_ROWS)
            with pq.ParquetWriter(file, batches.schema, compression="lz4") as writer:
                for batch in batches:
                    writer.write_batch(batch)
        file.flush()
        _seal(file)
        if known:
            known[1].close()
        self._files[table] = version, file
        return file


def _unnamed_file() -> IO[bytes]:
    """Open a file without a name, which stays open for the queries to come: in memory where it can be sealed there."""
    if CAN_SEAL:
        return os.fdopen(os.memfd_create("must-table", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()


def _seal(file: IO[bytes]) -> None:
    """Let nobody write to the file any more, not even a process that opens it again."""
    if CAN_SEAL:
        fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)


def _run(process: subprocess.Popen[bytes], request: bytes) -> dict[str, Any]:
    """Return what the process answers to its request, {"error": ...} if it does not in time."""
    with process:
        try:
            output, messages = process.communicate(request, timeout=MAX_S)
        except subprocess.TimeoutExpired:
            return {"error": f"The query took more than {MAX_S:g} s and was ended: ask for less."}
        finally:
            process.kill()
    if process.returncode == 0:
        answer: dict[str, Any] = json.loads(output)
        return answer
    if process.returncode == -signal.SIGSEGV:
        return {"error": "The query is too deep: its parts lie in one another too often."}
    lines = messages.decode(errors="replace").splitlines()
    return {"error": lines[-1] if lines and process.returncode > 0 else TOO_MUCH}
