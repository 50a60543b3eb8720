"""Call functions in several processes at once, with the environment that torchrun sets, for tests of training."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as connection_wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipeline.errors import MustError
from pipeline.steps.runtime import Runtime
from tests.forked import unblock_signals


class Launcher:
    """Calls a function in several processes and collects what they return.

    Example:
        assert launcher.call(2, torch.distributed.get_rank) == [0, 1]
    """

    def __init__(self, spawner: Any) -> None:
        self.spawner = spawner
        self.started: list[tuple[BaseProcess, Connection]] = []

    def start(self, count: int, function: Callable[..., Any], *arguments: Any) -> list[BaseProcess]:
        """Start processes that call the function, and return them."""
        port = _free_port()
        for rank in range(count):
            ours, theirs = self.spawner.Pipe(duplex=False)
            environ = _environ(rank, count, port)
            process = self.spawner.Process(target=_main, args=(theirs, environ, function, arguments))
            process.start()
            theirs.close()
            self.started.append((process, ours))
        return [process for process, _ in self.started]

    def results(self) -> list[Any]:
        """Return what each process returned, or the MustError that it raised. Fails on other errors."""
        answers: dict[Connection, Any] = {}
        waiting = {connection: process for process, connection in self.started}
        while waiting:
            for ready in connection_wait(list(waiting)):
                assert isinstance(ready, Connection)
                answers[ready] = ready.recv()  # EOFError if it was killed
                assert not isinstance(answers[ready], str), answers[ready]  # a traceback; the others may wait for it
                waiting.pop(ready).join()
        started, self.started = self.started, []
        return [answers[connection][0] for _, connection in started]

    def call(self, count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Start processes, and return their results."""
        self.start(count, function, *arguments)
        return self.results()

    def end(self) -> None:
        """Kill the processes that still run."""
        for process, _ in self.started:
            if process.is_alive():
                process.kill()
            process.join()


def _environ(rank: int, count: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in {**numbers, **address}.items()}


def _main(connection: Connection, environ: dict[str, str], function: Callable[..., Any], arguments: Any) -> None:
    unblock_signals()
    os.environ.update(environ)
    try:
        connection.send((function(*arguments),))
    except MustError as error:
        connection.send((error,))
    except BaseException:
        connection.send(traceback.format_exc())


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def stopped_by_signal(runtime: Runtime) -> Runtime:
    """Return the runtime; SIGTERM sets its `stop`."""
    signal.signal(signal.SIGTERM, lambda *_: runtime.stop.set())
    return runtime


def files(folder: Path) -> Iterator[str]:
    """Yield the path of every file in a folder, relative to it."""
    return (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
