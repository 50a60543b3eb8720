"""Lease-based lock on a storage path, safe without clocks.

Runs that share a root use it so that one of them makes an artifact while the others wait. It works on shared file
systems and on object storage, where file locks are missing or can't be trusted.

A lease is a file `<folder>/<number>.json`, made by `StoragePath.create`, which only one of many callers wins. Its
holder renews it every RENEW_S. A holder on this machine keeps the lock while its process lives, however slow it is, and
its end is noticed at once. One on another machine counts as dead when poll after poll finds the lease unchanged; one
that was slow to renew it before gets more of them. Polls are counted instead of seconds: clock skew is harmless, and so
is a storage that hangs for a while, since the poll that waits for it counts once. The lease of a dead holder is never
changed: the next number is created.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from pipeline.errors import MustError
from pipeline.storage.path import StoragePath
from pipeline.storage.process_id import ProcessId

LOCKS = "claims"
"""The folder of a root that holds the leases, a folder per lock."""
RENEW_S = 10.0
POLL_S = 0.5
LEASE_S = 60.0
"""A holder on another machine counts as dead after polls for this long that found no renewal."""
PATIENCE = 6
"""... and for so many times as long as it took for its slowest renewal that was seen."""

OnWait = Callable[[ProcessId], None]
"""Called at every poll with the process that holds the lock; may raise to stop waiting."""
IsHeld = Callable[[], bool]
"""Asks the storage whether the lock is still held."""


@dataclasses.dataclass(frozen=True)
class _Lease:
    """The content of a lease file. `renewed` counts up; `token` tells leases of one process apart."""

    holder: ProcessId
    token: str
    renewed: int = 0

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def read(cls, file: StoragePath) -> _Lease | None:
        """Return the lease in a file, or None if the file is gone."""
        text = file.read_if_exists()
        if text is None:
            return None
        fields = json.loads(text)
        return cls(ProcessId(**fields["holder"]), fields["token"], fields["renewed"])


class _Watch:
    """Count the polls that found the newest lease unchanged."""

    def __init__(self) -> None:
        self.seen: tuple[int, _Lease | None] = (-1, None)
        self.unchanged = 0
        self.slowest_renewal = 0

    def update(self, number: int, lease: _Lease | None) -> None:
        """Take note of what a poll found."""
        if (number, lease) == self.seen:
            self.unchanged += 1
            return
        self.slowest_renewal = max(self.slowest_renewal, self.unchanged) if number == self.seen[0] else 0
        self.seen, self.unchanged = (number, lease), 0

    def is_dead(self) -> bool:
        """Return True if the lease has a holder that counts as dead."""
        lease = self.seen[1]
        if lease is None or lease.holder.is_local:
            return lease is not None and lease.holder.has_ended()
        return self.unchanged * POLL_S > max(LEASE_S, PATIENCE * self.slowest_renewal * POLL_S)


@contextlib.contextmanager
def hold_lock(folder: StoragePath, on_wait: OnWait, on_lost: Callable[[], None]) -> Iterator[IsHeld]:
    """Hold the lock whose lease files lie in `folder`, waiting until it is free.

    If another process takes this one for dead (it may have slept) and takes over, `on_lost` is called some time later,
    on another thread. The yielded function tells at once:

    >>> with hold_lock(root / LOCKS / "x", on_wait=lambda holder: None, on_lost=stop.set) as is_held:
    ...     publish(result) if is_held() else discard(result)
    """
    lease = _Lease(ProcessId.current(), uuid.uuid4().hex)
    number = _acquire(folder, lease, on_wait)
    over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(folder, number, lease, over, on_lost), daemon=True, name="lease")
    renewing.start()
    try:
        yield lambda: _is_held(folder, number, lease)
    finally:
        over.set()
        renewing.join()
        if _is_ours(folder, number, lease):
            for old in _numbers(folder):
                if old <= number:
                    _file(folder, old).remove()


def lock_holders(root: StoragePath) -> dict[str, ProcessId]:
    """Return the holders of all locks below `root`, by the path of the lock, as far as a single poll can tell.

    Left out are holders on this machine that ended, and holders elsewhere that have not renewed their lease for LEASE_S
    by the storage's own clock.
    """
    newest: dict[str, int] = {}
    for path in root.files():
        lock, _, file = path.rpartition("/")
        if not file.startswith("."):
            newest[lock] = max(newest.get(lock, 0), int(file.removesuffix(".json")))
    leases = {lock: _Lease.read(_file(root / lock, number)) for lock, number in newest.items()}
    holders = {lock: lease.holder for lock, lease in leases.items() if lease and not lease.holder.has_ended()}
    if all(holder.is_local for holder in holders.values()):
        return holders
    now = _now(root)
    ages = {lock: now - (_file(root / lock, newest[lock]).modified() or 0) for lock in holders}
    return {lock: holder for lock, holder in holders.items() if holder.is_local or ages[lock] <= LEASE_S}


def _now(root: StoragePath) -> float:
    """Return the Unix time by the clock that dates the files below `root`."""
    probe = root / f".now-{uuid.uuid4().hex[:12]}"
    probe.write(b"")
    try:
        return probe.modified() or 0
    finally:
        probe.remove()


def _file(folder: StoragePath, number: int) -> StoragePath:
    return folder / f"{number}.json"


def _numbers(folder: StoragePath) -> list[int]:
    return sorted(int(name.removesuffix(".json")) for name in folder.files() if not name.startswith("."))


def _acquire(folder: StoragePath, own: _Lease, on_wait: OnWait) -> int:
    """Create a lease once no live one is left, and return its number."""
    watch = _Watch()
    while True:
        number = max(_numbers(folder), default=-1)
        lease = _Lease.read(_file(folder, number)) if number >= 0 else None
        if number >= 0 and lease is None:
            continue  # released between listing and reading
        if lease and lease.token == own.token:  # it was created, but the storage's answer was lost
            if _confirm(folder, *watch.seen):
                return number
            continue
        watch.update(number, lease)
        if lease and not watch.is_dead():
            on_wait(lease.holder)
            time.sleep(POLL_S)
        elif lease and _Lease.read(_file(folder, number)) != lease:
            continue  # its holder released it, and then ended
        elif _file(folder, number + 1).create(own.to_bytes()) and _confirm(folder, number, lease):
            return number + 1


def _confirm(folder: StoragePath, number: int, dead: _Lease | None) -> bool:
    """Return True if the lease before ours is still the dead one. If others came and went meanwhile, give ours up."""
    if dead is None or _Lease.read(_file(folder, number)) == dead:
        return True
    _file(folder, number + 1).remove()
    return False


def _renew(folder: StoragePath, number: int, own: _Lease, over: threading.Event, on_lost: Callable[[], None]) -> None:
    while not over.wait(RENEW_S):
        with contextlib.suppress(OSError, MustError):  # the storage does not answer for a moment: try again later
            if not _is_held(folder, number, own):
                on_lost()
                return
            own = dataclasses.replace(own, renewed=own.renewed + 1)
            _file(folder, number).write(own.to_bytes())


def _is_held(folder: StoragePath, number: int, own: _Lease) -> bool:
    """Return True if the lease is still ours and nobody created a later one.

    A later one counts if it is there for longer than a poll: whoever created it on top of a lease that was gone by then
    gives it up at once.
    """
    for wait in (0, POLL_S):
        time.sleep(wait)
        if not _is_ours(folder, number, own):
            return False
        if max(_numbers(folder), default=number) == number:
            return True
    return False


def _is_ours(folder: StoragePath, number: int, own: _Lease) -> bool:
    """Return True if the lease of this number is ours: another process may have released ours and reused the number."""
    lease = _Lease.read(_file(folder, number))
    return lease is not None and lease.token == own.token
