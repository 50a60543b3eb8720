"""Send the page of `must browse` requests and queries that nobody should make."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from tests.pipeline.sources.damage import ODD, most_bytes
from tests.waiting import wait_until

MOST_BYTES = 600 << 20
"""Memory that the page's server may hold."""
LONGEST_ANSWER_S = 30
REQUESTS = 100
"""Requests of a round; with them goes one query."""
GET = {
    **{"about": "", "images": "f t order limit offset show", "image/{}": "t", "histogram": "column f t"},
    **{"balance": "store threshold f t", "at/{}": "store x y threshold", "left-out/{}/{}": "has", "shards": "store"},
    **{"picture/{}": "store threshold side"},
}
"""What is asked for, with its parameters."""
POST = ("reject", "take-back", "undo/{}", "sql")
PARAMETERS: dict[str, tuple[str, ...]] = {
    **{"f": ("COLUMN<0.5", "COLUMN>=0.1", "split=train"), "t": ("STORE:0.5", "STORE:0.1"), "store": ("STORE",)},
    **{"order": ("COLUMN", "-COLUMN", "id"), "show": ("COLUMN",), "column": ("COLUMN",), "has": ("", "a")},
    **{"limit": ("1", "60"), "offset": ("0", "9"), "threshold": ("0", "0.5"), "side": ("16", "256")},
    **{"x": ("0", "0.99"), "y": ("0.5", "1")},
}
"""The parameters of requests, each with some good values: STORE and COLUMN stand for any that the page lists."""
FIELDS = ("keys", "f", "t", "store", "reason", "sql", "more")
TABLES = ("images", "failures", "rejected", "masks", "gabor", "range(9)", "unnest([1, 2])", "nothing")
VALUES = (
    *("1", "NULL", "'x'", "key", "*", "count(*)", "1 / 0", "repeat('x', 2000000000)", "list(range(500000000))"),
    *(
        "interval '100000000 years'",
        "'nan'::DOUBLE",
        "version()",
        "error('x')",
        "getenv('TORTURE_SECRET')",
        "pi()",
        "'\ud800'",
    ),
)
TAILS = (
    *(
        "",
        "LIMIT 5",
        "WHERE 1",
        "ORDER BY ALL",
        "GROUP BY ALL",
        "; DROP TABLE images",
        "UNION ALL SELECT 1",
        "-- x",
        "(",
    ),
    *("CROSS JOIN range(1000000) a CROSS JOIN range(1000000) b", "USING SAMPLE 5", "FETCH 1", "\0"),
)
STATEMENTS = (
    *("COPY images TO '{}.out'", "COPY (SELECT 1) TO '{}.out'", "WITH x AS (COPY images TO '{}.out') SELECT 1"),
    *("SELECT * FROM read_text('{}')", "SELECT * FROM '{}'", "SELECT * FROM read_csv('{}')", "ATTACH '{}.out'"),
    *("SELECT * FROM glob('{}*')", "SELECT read_blob('{}')", "EXPORT DATABASE '{}.out'", "LOAD '{}'", "INSTALL httpfs"),
    *("SET enable_external_access = true", "SELECT * FROM enable_logging(storage='file', storage_path='{}.out')"),
    *(
        "PRAGMA database_list",
        "CALL pragma_version()",
        "SELECT * FROM duckdb_settings()",
        "SELECT * FROM parquet_scan('{}')",
    ),
)


class Answer(NamedTuple):
    """What the server answered."""

    status: int
    body: bytes


class Page:
    """The page over a root, in a process of its own, with a secret in a file that it must not show."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.secret = folder, secrets.token_hex(16)
        self.outside = folder / "secret.txt"
        self.outside.write_text(self.secret, "utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "cli", "browse", str(root), "--port", str(self.port)]
        environ = {**os.environ, "TORTURE_SECRET": self.secret, "PYTHONPATH": str(Path(__file__).parents[2])}
        self.server = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=root, env=environ)
        wait_until(self._has_read_all, self.server)
        images = json.loads(self.ask("GET", "/api/images?limit=20").body)["images"]
        stores = json.loads(self.ask("GET", "/api/about").body)["stores"]
        self.known = {
            "KEY": [image["key"] for image in images],
            "STORE": [store["name"] for store in stores],
            "COLUMN": [f"{store['maker']}.{column}" for store in stores for column in store["columns"]],
        }
        self.files = set(folder.iterdir())

    def close(self) -> None:
        """End the server."""
        self.server.send_signal(signal.SIGTERM)
        self.server.wait(60)

    def send_bad_requests(self, rng: random.Random) -> tuple[str, list[str]]:
        """Make the requests of a round; return how they were answered, and all problems."""
        problems, answered = [], Counter[int]()
        for number in range(REQUESTS + 1):
            request = self._query(rng) if number == REQUESTS else self._request(rng)
            try:
                answer = self.ask(*request)
            except (OSError, http.client.HTTPException) as error:
                problems.append(f"{request}: {error!r}"[:2000])
                continue
            answered[answer.status] += 1
            if answer.status >= 500 or self.secret.encode() in answer.body:
                problems.append(f"{request}: {answer}"[:2000])
        if not {200, 400, 404} <= answered.keys():
            problems.append("not one of the requests was good, bad, or for something that is not there")
        held = most_bytes(self.server.pid)
        if held > MOST_BYTES:
            problems.append(f"the server held {held:,} bytes")
        if more := set(self.folder.iterdir()) - self.files:
            problems.append(f"there are new files: {more}")
        return f"{answered.total()} answers: {dict(sorted(answered.items()))}; {held >> 20} MB at most", problems

    def ask(self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """Send a request as it is, whatever its target."""
        asked = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONGEST_ANSWER_S)
        with contextlib.closing(asked):
            asked.putrequest(method, target, skip_host=True)
            sent = {"Host": "localhost", "Content-Length": str(len(body)), **(headers or {})}
            for name, value in sent.items():
                asked.putheader(name, value)
            asked.endheaders(body)
            answer = asked.getresponse()
            return Answer(answer.status, answer.read())

    def _has_read_all(self) -> bool:
        try:
            about = json.loads(self.ask("GET", "/api/about").body)
        except (OSError, http.client.HTTPException):
            return False
        return bool(about["images"] and about["stores"] and about["loaded"] == about["found"])

    def _request(self, rng: random.Random) -> tuple[str, str, bytes, dict[str, str]]:
        if rng.random() < 0.15:
            return "GET", self._path_to_secret(rng), b"", {}
        if rng.random() < 0.3:
            path = f"/api/{rng.choice(POST).replace('{}', self._word(rng))}"
            return "POST", path, self._body(rng), {"Content-Type": "application/json"}
        asked = rng.choice(list(GET))
        path = "/".join(part.replace("{}", self._word(rng)) for part in asked.split("/"))
        given = [self._parameter(name, rng) for name in GET[asked].split() if rng.random() < 0.7]
        if rng.random() < 0.2:
            given.append(self._parameter(rng.choice(list(PARAMETERS)), rng))
        return rng.choice(("GET",) * 8 + ("HEAD", "PUT")), f"/api/{path}?{'&'.join(given)}", b"", {}

    def _parameter(self, name: str, rng: random.Random) -> str:
        good = quote(self._known(rng.choice(PARAMETERS[name]), rng))
        return f"{name}={good if rng.random() < 0.8 else self._word(rng)}"

    def _known(self, text: str, rng: random.Random) -> str:
        """Return a text with what the page lists in the places of KEY, STORE and COLUMN."""
        for kind, known in self.known.items():
            text = text.replace(kind, rng.choice(known))
        return text

    def _path_to_secret(self, rng: random.Random) -> str:
        up = rng.choice(("../", "..%2f", "%2e%2e/", "..%5c", "%252e%252e%252f", "....//", "/", "")) * rng.randrange(
            1, 12
        )
        return f"/{rng.choice(('', 'page/', 'api/picture/', 'api/image/'))}{up}{str(self.outside).lstrip('/')}"

    def _word(self, rng: random.Random) -> str:
        """Return a word of a URL: the key of an image, something else that there is, or an odd one."""
        word = self._known(rng.choice(("KEY",) * 8 + ("STORE", "COLUMN")), rng)
        if rng.random() < 0.3:
            word = str(rng.choice([*ODD, str(self.outside), f"{word}|", "random", "-id"]))[:5000]
        return quote(word.encode("utf-8", "surrogatepass"), safe="")

    def _body(self, rng: random.Random) -> bytes:
        if rng.random() < 0.1:
            return rng.choice((b"", b"{", b"null", b"[" * 100_000, rng.randbytes(50)))
        values = [*ODD, *self.known["STORE"], self.known["KEY"][:3], ["split=train"]]
        return json.dumps({rng.choice(FIELDS): rng.choice(values) for _ in range(rng.randrange(4))}).encode()

    def _query(self, rng: random.Random) -> tuple[str, str, bytes, dict[str, str]]:
        if rng.random() < 0.4:
            sql = rng.choice(STATEMENTS).format(
                rng.choice((self.outside, "../secret.txt", "file://" + str(self.outside)))
            )
        else:
            chosen = ", ".join(rng.choice(VALUES) for _ in range(rng.choice((1, 2, 50))))
            sql = f"SELECT {chosen} FROM {rng.choice(TABLES)} {rng.choice(TAILS)}"
            if rng.random() < 0.2:
                sql = f"WITH x AS ({sql}) SELECT * FROM x a, x b, x c"
        return "POST", "/api/sql", json.dumps({"sql": sql}).encode(), {"Content-Type": "application/json"}
