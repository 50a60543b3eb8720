"""Run the command in a process that has torch loaded already, and its fork server as well.

Importing torch, torchvision and timm takes longer than most runs of the tests. So a run's fork server is forked from
the run here, instead of started as a new Python; tests that run the command as a user does start the real one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, util
from typing import Any

from cli.main import main
from flows.run.processes import GROUP_SIGNALS, PRELOADED


def run_must(environ: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Run `must` with these arguments and environment variables: the main function of a test's process."""
    unblock_signals()
    os.environ.update(environ)
    spawn, forked = util.spawnv_passfds, list[int]()

    def spawn_or_fork(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        as_known = _is_fork_server(args) and len(passfds) == 2  # Python 3.14 hands over a key as well
        if forked or not as_known:  # after the first one was killed, other threads may hold locks for ever in a fork
            return spawn(path, args, passfds)
        forked.append(_fork(passfds))
        return forked[0]

    util.spawnv_passfds = spawn_or_fork
    main(list(arguments))


def unblock_signals() -> None:
    """Let signals reach this process: one fork server starts all processes of the tests, and a run's blocks them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)


def _is_fork_server(arguments: Sequence[Any]) -> bool:
    return str(arguments[-1]).startswith("from multiprocessing.forkserver import main;")


def _fork(descriptors: Sequence[int]) -> int:
    """Fork this process to be the fork server, with its listening socket and pipe. Returns the pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        kept = {0, 1, 2, *descriptors}
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor not in kept:
                with contextlib.suppress(OSError):  # that of the listing itself
                    os.close(descriptor)
        listener, alive = descriptors
        forkserver.main(listener, alive, PRELOADED)
    except SystemExit:
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)
