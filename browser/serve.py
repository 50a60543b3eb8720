"""Serve the page over a root until Ctrl-C, for `must browse`."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from types import FrameType
from typing import NoReturn
from urllib.parse import urlencode

import uvicorn

from browser.answers import Answers
from browser.app import create_app
from browser.catalogue import root_above
from browser.guard import new_token
from browser.loading import Loading
from pipeline.errors import ConfigError
from pipeline.storage.path import StoragePath

PORTS_TRIED = 20
"""Ports that are tried to find a free one to offer."""
LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(path: str, host: str, port: int, token: str | None) -> None:
    """Serve the page over the root that contains `path`; other machines are answered with a token only.

    If they can reach it and no token is given, one is made. Raises ConfigError if the root has nothing to show, or the
    port is taken.
    """
    if host not in LOCAL and token is None:
        token = new_token()
    root, below = root_above(StoragePath.of(path))
    _check_free(host, port)
    loading = Loading(root)
    refresher = threading.Thread(target=loading.refresh_until_closed, name="loading", daemon=True)
    refresher.start()
    shown = below.split("/")[1] if below.startswith("labels/") else ""
    query = urlencode({key: value for key, value in (("store", shown), ("token", token)) if value})
    print(f"{root}: http://{_display_host(host)}:{port}/{'?' if query else ''}{query}  (Ctrl-C ends it)", flush=True)
    if token:
        print("Whoever has this link can see the page.", flush=True)
    app = create_app(Answers(loading), token)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False, lifespan="off")
    signal.signal(signal.SIGTERM, _end)  # uvicorn passes the signal on when it has ended
    try:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run()
    finally:
        loading.close()
        refresher.join()
        loading.tables.close()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """Exit normally, so that temporary folders are removed."""
    raise SystemExit(0)


def _display_host(host: str) -> str:
    return {"127.0.0.1": "localhost", "0.0.0.0": socket.gethostname()}.get(host, f"[{host}]" if ":" in host else host)


def _check_free(host: str, port: int) -> None:
    """Raise ConfigError, naming a free port, if this one is taken."""
    if _is_free(host, port):
        return
    free = next((other for other in range(port + 1, port + 1 + PORTS_TRIED) if _is_free(host, other)), None)
    raise ConfigError(f"Port {port} is taken: --port {free} is free." if free else f"Port {port} is taken.")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
