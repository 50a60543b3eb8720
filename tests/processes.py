"""Several processes at once, as torchrun starts them: what the tests of training together call their functions in."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipeline.errors import MustError
from pipeline.steps.runtime import Runtime

SOON_S = 120.0
"""What processes may take, on a machine that does other things as well."""


class Together:
    """Starts functions in several processes, and is told what they come to."""

    def __init__(self, spawner: Any) -> None:
        self.spawner = spawner
        self.started: list[tuple[BaseProcess, Connection]] = []

    def start(self, count: int, function: Callable[..., Any], *arguments: Any) -> list[BaseProcess]:
        """The processes, begun: each calls the function."""
        port = _free_port()
        for rank in range(count):
            mine, theirs = self.spawner.Pipe(duplex=False)
            about = _environment(rank, count, port)
            process = self.spawner.Process(target=_one, args=(theirs, about, function, arguments))
            process.start()
            theirs.close()
            self.started.append((process, mine))
        return [process for process, _ in self.started]

    def results(self) -> list[Any]:
        """What the function returned in each process, or the error of this project that it raised. Others fail."""
        found = []
        for process, told in self.started:
            assert told.poll(SOON_S), "a process never ended"
            found.append(told.recv())
            process.join()
        self.started = []
        failed = [each for each in found if isinstance(each, str)]
        assert not failed, "\n".join(failed)
        return [each[0] for each in found]

    def call(self, count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Start and wait."""
        self.start(count, function, *arguments)
        return self.results()

    def end(self) -> None:
        """Leave no process behind."""
        for process, _ in self.started:
            if process.is_alive():
                process.kill()
            process.join()


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in {**numbers, **where}.items()}


def _one(told: Connection, environment: dict[str, str], function: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(environment)
    try:
        told.send((function(*arguments),))
    except MustError as error:
        told.send((error,))
    except BaseException:
        told.send(traceback.format_exc())


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def stopped_by_signal(runtime: Runtime) -> Runtime:
    """The runtime, asked to stop by SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: runtime.stop.set())
    return runtime


def files(folder: Path) -> Iterator[str]:
    """Every file in a folder, by its path in it."""
    return (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
