"""Serve S3 to tests in a thread of this process, and count its requests."""

from __future__ import annotations

import collections
import json
import logging
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import boto3
from moto import settings
from moto.s3.responses import S3Response
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
    """Collects the request lines of a server."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(re.sub(r"\x1b\[\d*m", "", record.getMessage()))  # without colours

    def count(self) -> dict[str, int]:
        """Return the number of requests by method."""
        methods = (line.partition('"')[2].partition(" ")[0] for line in self.lines)
        return dict(collections.Counter(methods))


@contextmanager
def serve() -> Iterator[str]:
    """Serve an empty S3; yields its address."""
    log = logging.getLogger("werkzeug")
    log.propagate = False
    log.setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with _atomic_puts():
        server.start()
        host, port = server.get_host_and_port()
        try:
            yield f"http://{host}:{port}"
        finally:
            server.stop()


def _atomic_puts() -> AbstractContextManager[object]:
    """Let one `PutObject` after the other in, as S3 decides on `If-None-Match`: moto looks first and writes later."""
    lock, put = threading.Lock(), S3Response.put_object

    def put_object(response: S3Response) -> Any:
        with lock:
            return put(response)

    return patch.object(S3Response, "put_object", put_object)


@contextmanager
def listening() -> Iterator[Requests]:
    """Yield the requests that the server receives while inside."""
    log, requests = logging.getLogger("werkzeug"), Requests()
    level, others = log.level, log.handlers
    log.handlers = [requests]  # alone: thousands of lines would be printed otherwise
    log.setLevel(logging.INFO)
    try:
        yield requests
    finally:
        log.handlers = others
        log.setLevel(level)


def system() -> Any:
    """Open the file system of the environment. A test that changes the environment clears the instances of s3fs."""
    import s3fs  # noqa: PLC0415 - only where a test wants it

    return s3fs.S3FileSystem(use_listings_cache=False)


class Key(NamedTuple):
    """The key pair that a user signs requests with."""

    name: str
    secret: str


@contextmanager
def guarded(address: str, may: list[str]) -> Iterator[Key]:
    """Yield the key of a user who may do only this; while inside, the server refuses everybody else."""
    users = boto3.client("iam", endpoint_url=address)
    name = f"user-{uuid.uuid4().hex[:8]}"
    users.create_user(UserName=name)
    if may:
        rule = {"Effect": "Allow", "Action": may, "Resource": "*"}
        document = json.dumps({"Version": "2012-10-17", "Statement": [rule]})
        users.put_user_policy(UserName=name, PolicyName="may", PolicyDocument=document)
    key = users.create_access_key(UserName=name)["AccessKey"]
    before, settings.INITIAL_NO_AUTH_ACTION_COUNT = settings.INITIAL_NO_AUTH_ACTION_COUNT, 0
    try:
        yield Key(key["AccessKeyId"], key["SecretAccessKey"])
    finally:
        settings.INITIAL_NO_AUTH_ACTION_COUNT = before
