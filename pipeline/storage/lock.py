"""Of runs that work on one root at the same time, one makes an artifact and the others wait for it.

A claim is a file `<root>/claims/<what>/<number>.json`, made by `StoragePath.create`, which one of many wins on a file system
that is shared and on object storage as well. Its holder renews it every few seconds. A holder that ended on this
machine is found at once; one elsewhere by a claim that look after look found as it was. Looks are counted and no
clock is asked, so that clocks that differ or jump do no harm; nor does a storage that answers nobody for a while: the
look that waits for it is one. A dead holder's claim is never changed: the next number is created.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.errors import MustError
from pipeline.storage.path import StoragePath
from pipeline.storage.process_id import ProcessId

RENEW_S = 10.0
LOOK_S = 0.5
"""Between looks at a claim that is waited for."""
PATIENCE_S = 60.0
"""After looks for so long that found no renewal, a holder on another machine is taken for dead."""

Told = Callable[[ProcessId], None]
"""Called now and then while a claim is waited for, with who holds it; may raise to end the wait."""
Holds = Callable[[], bool]
"""Asks the storage whether a claim is held still."""


@dataclasses.dataclass(frozen=True)
class _Claim:
    """What a claim's file says. `renewed` counts up, and `token` tells claims of one process apart."""

    holder: ProcessId
    token: str
    renewed: int = 0

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def read(cls, file: StoragePath) -> _Claim | None:
        """The claim in a file, None if it is gone."""
        text = file.peek()
        if text is None:
            return None
        about: dict[str, Any] = json.loads(text)
        return cls(ProcessId(**about["holder"]), about["token"], about["renewed"])


@contextlib.contextmanager
def hold_lock(folder: StoragePath, waiting: Told, lost: Callable[[], None]) -> Iterator[Holds]:
    """Hold the claim whose files lie in `folder`, once it is free. `lost` is called, on another thread, some time after
    somebody took this process for dead (it may have slept) and holds the claim now; what this gives tells it at once.
    """
    mine = _Claim(ProcessId.this(), uuid.uuid4().hex)
    number = _take(folder, mine, waiting)
    over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(folder, number, mine, over, lost), daemon=True, name="claim")
    renewing.start()
    try:
        yield lambda: _is_held(folder, number, mine)
    finally:
        over.set()
        renewing.join()
        _release(folder, number, mine)


def lock_holders(root: StoragePath) -> dict[str, ProcessId]:
    """Who holds what below `root`, as far as one look can tell: not those that ended on this machine, or elsewhere
    without having renewed their claims for a while, by the storage's own clock.
    """
    newest: dict[str, int] = {}
    for name in root.files():
        what, _, file = name.rpartition("/")
        if not file.startswith("."):
            newest[what] = max(newest.get(what, 0), int(file.removesuffix(".json")))
    claims = {what: _Claim.read(_file(root / what, number)) for what, number in newest.items()}
    found = {what: claim.holder for what, claim in claims.items() if claim and not claim.holder.ended()}
    if all(holder.is_here for holder in found.values()):
        return found
    now = _now(root)
    ages = {what: now - (_file(root / what, newest[what]).written() or 0) for what in found}
    return {what: holder for what, holder in found.items() if holder.is_here or ages[what] <= PATIENCE_S}


def _now(root: StoragePath) -> float:
    """The time by the clock that dates the files below `root`."""
    probe = root / f".now-{uuid.uuid4().hex[:12]}"
    probe.write(b"")
    try:
        return probe.written() or 0
    finally:
        probe.remove()


def _file(folder: StoragePath, number: int) -> StoragePath:
    return folder / f"{number}.json"


def _numbers(folder: StoragePath) -> list[int]:
    return sorted(int(name.removesuffix(".json")) for name in folder.files() if not name.startswith("."))


def _take(folder: StoragePath, mine: _Claim, waiting: Told) -> int:
    """The number that a claim of this process got, when there is no other that lives."""
    seen: tuple[int, _Claim | None] = (-1, None)
    looks = 0
    while True:
        number = max(_numbers(folder), default=-1)
        claim = _Claim.read(_file(folder, number)) if number >= 0 else None
        if number >= 0 and claim is None:
            continue  # released between two looks
        if claim and claim.token == mine.token:  # it was created, and the storage's word on that was lost
            if _still(folder, *seen):
                return number
            continue
        looks = looks + 1 if (number, claim) == seen else 0
        seen = (number, claim)
        if claim is None or claim.holder.ended() or looks * LOOK_S > PATIENCE_S:
            if _file(folder, number + 1).create(mine.to_bytes()) and _still(folder, number, claim):
                return number + 1
            continue
        waiting(claim.holder)
        time.sleep(LOOK_S)


def _still(folder: StoragePath, number: int, dead: _Claim | None) -> bool:
    """Whether the claim before ours is the one we found dead; if others came and went meanwhile, ours is given up."""
    if dead is None or _Claim.read(_file(folder, number)) == dead:
        return True
    _file(folder, number + 1).remove()
    return False


def _renew(folder: StoragePath, number: int, mine: _Claim, over: threading.Event, lost: Callable[[], None]) -> None:
    while not over.wait(RENEW_S):
        with contextlib.suppress(OSError, MustError):  # a store that does not answer for a moment: the next time
            if not _is_held(folder, number, mine):
                lost()
                return
            mine = dataclasses.replace(mine, renewed=mine.renewed + 1)
            _file(folder, number).write(mine.to_bytes())


def _is_held(folder: StoragePath, number: int, mine: _Claim) -> bool:
    """Whether the claim is ours still: nobody has made a later one, and it was not given back with one that was."""
    return _is_ours(folder, number, mine) and max(_numbers(folder), default=number) == number


def _is_ours(folder: StoragePath, number: int, mine: _Claim) -> bool:
    """Whether the claim of this number is ours: another may have been made since ours was taken for dead."""
    there = _Claim.read(_file(folder, number))
    return there is not None and there.token == mine.token


def _release(folder: StoragePath, number: int, mine: _Claim) -> None:
    if _is_ours(folder, number, mine):
        for old in _numbers(folder):
            if old <= number:
                _file(folder, old).remove()
