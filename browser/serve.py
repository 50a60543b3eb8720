"""`must browse`: the page over a root, until Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from types import FrameType
from typing import NoReturn

import uvicorn

from browser.answers import Answers
from browser.app import create_app
from browser.catalogue import root_above
from browser.loading import Loading
from pipeline.errors import ConfigError
from pipeline.storage.path import StoragePath

PORT = 8800
TRIED = 20
"""Ports that are looked at for a free one to offer."""
LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(path: str, host: str, port: int, token: str | None) -> None:
    """Serve the page over the root that `path` leads into. Raises ConfigError if there is nothing to show, or the port
    is taken; only with a token does it answer others than this machine.
    """
    if host not in LOCAL and token is None:
        raise ConfigError(f"--host {host} lets other machines reach the page: add --token, which they have to know.")
    root, below = root_above(StoragePath.of(path))
    _check_free(host, port)
    loading = Loading(root)
    looking = threading.Thread(target=loading.keep_up, name="loading", daemon=True)
    looking.start()
    shown = below.split("/")[1] if below.startswith("labels/") else ""
    query = "&".join(part for part in (f"store={shown}" if shown else "", f"token={token}" if token else "") if part)
    print(f"{root}: http://{_named(host)}:{port}/{'?' if query else ''}{query}  (Ctrl-C ends it)", flush=True)
    app = create_app(Answers(loading), token)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False, lifespan="off")
    signal.signal(signal.SIGTERM, _end)  # which uvicorn passes on when it has ended
    try:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run()
    finally:
        loading.close()
        looking.join()
        loading.tables.close()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """End in order, so that what lies in temporary folders goes."""
    raise SystemExit(0)


def _named(host: str) -> str:
    return {"127.0.0.1": "localhost", "0.0.0.0": socket.gethostname()}.get(host, f"[{host}]" if ":" in host else host)


def _check_free(host: str, port: int) -> None:
    """ConfigError, with a port that is free, if this one is not."""
    if _is_free(host, port):
        return
    free = next((other for other in range(port + 1, port + 1 + TRIED) if _is_free(host, other)), None)
    raise ConfigError(f"Port {port} is taken: --port {free} is free." if free else f"Port {port} is taken.")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
