"""An S3 server of the tests' own, in a thread of this process, and what it was asked."""

from __future__ import annotations

import collections
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import ThreadedMotoServer

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "no_proxy": "127.0.0.1",
}
"""What a user would set, but for AWS_ENDPOINT_URL."""


class Requests(logging.Handler):
    """The requests of a server, by their method, while it is listened to."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def count(self) -> dict[str, int]:
        """How many there were of each method."""
        methods = (line.partition('"')[2].partition(" ")[0] for line in self.lines)
        return dict(collections.Counter(methods))


@contextmanager
def serve() -> Iterator[str]:
    """A server, empty; gives its address."""
    log = logging.getLogger("werkzeug")
    log.propagate = False
    log.setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def listening() -> Iterator[Requests]:
    """What the server is asked while inside."""
    log, requests = logging.getLogger("werkzeug"), Requests()
    before = log.level
    log.addHandler(requests)
    log.setLevel(logging.INFO)
    try:
        yield requests
    finally:
        log.removeHandler(requests)
        log.setLevel(before)


def system() -> Any:
    """The file system of the environment, opened anew: another may have been set before."""
    import s3fs  # noqa: PLC0415 - only where a test wants it

    s3fs.S3FileSystem.clear_instance_cache()
    return s3fs.S3FileSystem(use_listings_cache=False)
