"""Of runs that work on one root at the same time, one makes an artifact and the others wait for it.

A claim is a file `<root>/claims/<what>/<number>.json`, made by `Place.create`, which one of many wins on a file system
that is shared and on object storage as well. Its holder renews it every few seconds. A holder that ended on this
machine is found at once; one elsewhere by a claim that was not renewed for a while on the finder's own steady clock,
so that clocks that differ or jump do no harm. A dead holder's claim is never changed: the next number is created.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.alive import Process
from pipeline.errors import MustError
from pipeline.places import Place

RENEW_S = 10.0
PATIENCE_S = 60.0
"""After so long without a renewal a holder on another machine is taken for dead."""
LOOK_S = 0.5
"""Between looks at a claim that is waited for."""

Told = Callable[[Process], None]
"""Called now and then while a claim is waited for, with who holds it; may raise to end the wait."""


@dataclasses.dataclass(frozen=True)
class _Claim:
    """What a claim's file says. `renewed` counts up."""

    holder: Process
    renewed: int = 0

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def read(cls, file: Place) -> _Claim | None:
        """The claim in a file, None if it is gone."""
        text = file.peek()
        if text is None:
            return None
        about: dict[str, Any] = json.loads(text)
        return cls(Process(**about["holder"]), about["renewed"])


@contextlib.contextmanager
def claimed(folder: Place, waiting: Told, lost: Callable[[], None]) -> Iterator[None]:
    """Hold the claim whose files lie in `folder`, once it is free. `lost` is called, on another thread, if somebody
    took this process for dead (it may have slept) and holds the claim now.
    """
    number = _take(folder, waiting)
    over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(folder, number, over, lost), daemon=True, name="claim")
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        _release(folder, number)


def holders(root: Place) -> dict[str, Process]:
    """Who holds what below `root`, as far as one look can tell: those that ended on this machine are left out."""
    newest: dict[str, int] = {}
    for name in root.files():
        what, _, file = name.rpartition("/")
        newest[what] = max(newest.get(what, 0), int(file.removesuffix(".json")))
    claims = {what: _Claim.read(_file(root / what, number)) for what, number in newest.items()}
    return {what: claim.holder for what, claim in claims.items() if claim and not claim.holder.ended()}


def _file(folder: Place, number: int) -> Place:
    return folder / f"{number}.json"


def _numbers(folder: Place) -> list[int]:
    return sorted(int(name.removesuffix(".json")) for name in folder.files() if not name.startswith("."))


def _take(folder: Place, waiting: Told) -> int:
    """The number of a claim of this process, when there is no other that lives."""
    mine = _Claim(Process.this()).to_bytes()
    seen: tuple[int, _Claim] | None = None
    since = time.monotonic()
    while True:
        number = max(_numbers(folder), default=-1)
        claim = _Claim.read(_file(folder, number)) if number >= 0 else None
        if number >= 0 and claim is None:
            continue  # released between two looks
        if claim and (number, claim) != seen:
            seen, since = (number, claim), time.monotonic()
        if claim is None or claim.holder.ended() or time.monotonic() - since > PATIENCE_S:
            if _file(folder, number + 1).create(mine) and _still(folder, number, claim):
                return number + 1
            continue
        waiting(claim.holder)
        time.sleep(LOOK_S)


def _still(folder: Place, number: int, dead: _Claim | None) -> bool:
    """Whether the claim before ours is the one we found dead; if others came and went meanwhile, ours is given up."""
    if dead is None or _Claim.read(_file(folder, number)) == dead:
        return True
    _file(folder, number + 1).remove()
    return False


def _renew(folder: Place, number: int, over: threading.Event, lost: Callable[[], None]) -> None:
    renewed = 0
    while not over.wait(RENEW_S):
        with contextlib.suppress(OSError, MustError):  # a store that does not answer for a moment: the next time
            if max(_numbers(folder), default=number) > number:
                lost()
                return
            renewed += 1
            _file(folder, number).write(_Claim(Process.this(), renewed).to_bytes())


def _release(folder: Place, number: int) -> None:
    for old in _numbers(folder):
        if old <= number:
            _file(folder, old).remove()
