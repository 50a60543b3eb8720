"""Lease-based lock on a storage path, safe without clocks.

Runs that share a root use it so that one of them makes an artifact while the others wait. It works on shared file
systems and on object storage, where file locks are missing or can't be trusted.

A lease is a file `<folder>/<number>.json`, made by `StoragePath.create`, which only one of many callers wins. Every
RENEW_S its holder counts up in a file beside it. A holder on this machine keeps the lock while its process lives,
however slow it is, and its end is noticed at once. One on another machine counts as dead when poll after poll finds its
lease unrenewed; one that was slow to renew it before gets more of them. Polls are counted instead of seconds: clock
skew is harmless, and so is a storage that hangs for a while, since the poll that waits for it counts once. A lease is
never changed, that of a dead holder neither: the next number is created.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import posixpath
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from pipeline.errors import DataError, MustError
from pipeline.storage.json_text import load_json
from pipeline.storage.path import StoragePath
from pipeline.storage.process_id import ProcessId

LOCKS = "claims"
"""The folder of a root that holds the leases, a folder per lock."""
RENEW_S = 10.0
POLL_S = 0.5
DEAD_AFTER_S = 60.0
"""A holder on another machine counts as dead after polls for this long that found no renewal, ..."""
PATIENCE = 6
"""... or for this many times as long as its slowest renewal took, if that is longer."""
GIVEN_UP_S = 10.0
"""A lease that its creator gives up, since the one before was no longer there, is gone after polls for this long."""
FORGOTTEN_S = 600.0
"""The age of a renewal, by the storage's clock, from which on a holder elsewhere is no longer listed."""

OnWait = Callable[[ProcessId], None]
"""Called at every poll with the process that holds the lock; may raise to stop waiting."""
IsHeld = Callable[[], bool]
"""Asks the storage whether the lock is still held."""


_held: set[str] = set()
"""The tokens of the leases that this process holds."""


@dataclasses.dataclass(frozen=True)
class _Lease:
    """The content of a lease file. `token` tells leases of one process apart."""

    holder: ProcessId
    token: str

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def read(cls, file: StoragePath) -> _Lease | None:
        """Return the lease in a file, or None if the file is gone."""
        text = file.read_if_exists()
        if text is None:
            return None
        try:
            fields = load_json(text)
            return cls(ProcessId(**fields["holder"]), fields["token"])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file}: holds {text!r:.40}, which is no lease. Delete it while nothing runs.") from error

    def has_ended(self) -> bool:
        """Return True if the holder is on this machine and ended, or is this process, which released the lease."""
        return self.holder.has_ended() or (self.holder == ProcessId.current() and self.token not in _held)


class _Watch:
    """Count the polls that found the newest lease unrenewed."""

    def __init__(self) -> None:
        self.token, self.renewal = "", b""
        self.unchanged = self.slowest_renewal = 0

    def is_dead(self, lease: _Lease, renewals: StoragePath) -> bool:
        """Poll once; return True if the holder counts as dead."""
        if lease.holder.is_local:
            return lease.has_ended()
        renewal = renewals.read_if_exists() or b""
        if lease.token != self.token:
            self.slowest_renewal = self.unchanged = 0
        elif renewal != self.renewal:
            self.slowest_renewal, self.unchanged = max(self.slowest_renewal, self.unchanged), 0
        else:
            self.unchanged += 1
        self.token, self.renewal = lease.token, renewal
        return self.unchanged * POLL_S > max(DEAD_AFTER_S, PATIENCE * self.slowest_renewal * POLL_S)


@contextlib.contextmanager
def hold_lock(folder: StoragePath, on_wait: OnWait, on_lost: Callable[[], None]) -> Iterator[IsHeld]:
    """Hold the lock whose lease files lie in `folder`, waiting until it is free.

    If another process takes this one for dead (it may have slept) and takes over, `on_lost` is called some time later,
    on another thread. The yielded function asks the storage now:

    >>> with hold_lock(root / LOCKS / "x", on_wait=lambda holder: None, on_lost=stop.set) as is_held:
    ...     publish(result) if is_held() else discard(result)
    """
    lease = _Lease(ProcessId.current(), uuid.uuid4().hex)
    _held.add(lease.token)
    try:
        with contextlib.ExitStack() as at_end:
            at_end.callback(_release_surely, folder, lease)
            number = _acquire(folder, lease, on_wait)
            over = threading.Event()
            renewing = threading.Thread(
                target=_renew, args=(folder, number, lease, over, on_lost), daemon=True, name="lease"
            )
            renewing.start()
            at_end.callback(renewing.join)
            at_end.callback(over.set)
            yield lambda: _is_held(folder, number, lease)
    finally:
        _held.remove(lease.token)


def lock_holders(root: StoragePath) -> dict[str, ProcessId]:
    """Return the holders of all locks below `root`, by the path of the lock, as far as a single poll can tell.

    Left out are holders on this machine that ended, and holders elsewhere that have not renewed their lease for
    FORGOTTEN_S by the storage's own clock.
    """
    holders: dict[str, ProcessId] = {}
    now: float | None = None
    for path in root.files():
        folder, number = root / posixpath.dirname(path), _number(posixpath.basename(path))
        lease = None if number is None else _Lease.read(root / path)
        if number is None or lease is None or lease.has_ended():
            continue
        if not lease.holder.is_local:
            now = now or _now(root)
            renewed = _renewals(folder, number, lease).modified() or (root / path).modified() or 0
            if now - renewed > FORGOTTEN_S:
                continue
        holders[posixpath.dirname(path)] = lease.holder
    return holders


def _now(root: StoragePath) -> float:
    """Return the Unix time by the clock that dates the files below `root`, by our own if `root` can't be written."""
    probe = root / f".now-{uuid.uuid4().hex[:12]}"
    try:
        probe.write(b"")
    except (OSError, MustError):
        return time.time()
    try:
        return probe.modified() or 0
    finally:
        probe.remove()


def _file(folder: StoragePath, number: int) -> StoragePath:
    return folder / f"{number}.json"


def _renewals(folder: StoragePath, number: int, lease: _Lease) -> StoragePath:
    """Return the file in which the holder of a lease counts its renewals."""
    return folder / f"{number}.{lease.token}"


def _number(name: str) -> int | None:
    """Return the number of a lease by the name of its file, None for other files."""
    stem, _, suffix = name.partition(".")
    return int(stem) if suffix == "json" and stem.isdecimal() else None


def _numbers(folder: StoragePath) -> list[int]:
    return sorted(number for number in map(_number, folder.files()) if number is not None)


def _release_surely(folder: StoragePath, own: _Lease) -> None:
    """Release a lease; while the storage does not answer, go on trying on a thread for as long as this process lives.

    Others on this machine wait for its holder as long.
    """
    try:
        _release(folder, own)
    except (OSError, MustError):
        threading.Thread(target=_release_later, args=(folder, own), daemon=True, name="lease").start()


def _release_later(folder: StoragePath, own: _Lease) -> None:
    while True:
        time.sleep(RENEW_S)
        with contextlib.suppress(OSError, MustError):
            return _release(folder, own)


def _release(folder: StoragePath, own: _Lease) -> None:
    """Remove a lease, if it was created, with what holders that ended left before it."""
    for number in reversed(_numbers(folder)):
        with contextlib.suppress(DataError):  # a file that is no lease is not ours
            if _is_ours(folder, number, own):
                _remove_up_to(folder, number)
    for name in folder.files():
        if name.endswith(f".{own.token}"):  # of a lease that another process has removed
            (folder / name).remove()


def _remove_up_to(folder: StoragePath, last: int) -> None:
    """Remove all leases up to this number, ours after those before it, with their counts of renewals."""
    files = [(int(stem), name) for name in folder.files() if (stem := name.partition(".")[0]).isdecimal()]
    for number, name in sorted(files):
        if number <= last:
            (folder / name).remove()


def _acquire(folder: StoragePath, own: _Lease, on_wait: OnWait) -> int:
    """Create a lease once no live one is left, and return its number."""
    watch = _Watch()
    before: tuple[int, _Lease | None] = (-1, None)
    while True:
        number = max(_numbers(folder), default=-1)
        lease = _Lease.read(_file(folder, number)) if number >= 0 else None
        if number >= 0 and lease is None:
            continue  # released between listing and reading
        if lease and lease.token == own.token:  # it was created, but the storage's answer was lost
            if _confirm(folder, *before):
                return number
            continue
        before = (number, lease)
        if lease and not watch.is_dead(lease, _renewals(folder, number, lease)):
            on_wait(lease.holder)
            time.sleep(POLL_S)
        elif lease and _Lease.read(_file(folder, number)) != lease:
            continue  # its holder released it, and then ended
        elif _file(folder, number + 1).create(own.to_bytes()) and _confirm(folder, number, lease):
            return number + 1
        elif _file(folder, number + 1).is_folder():
            raise DataError(f"{_file(folder, number + 1)}: is a folder, and no lease. Delete it while nothing runs.")


def _confirm(folder: StoragePath, number: int, dead: _Lease | None) -> bool:
    """Return True if the lease before ours is still the dead one. If others came and went meanwhile, give ours up."""
    if dead is None or _Lease.read(_file(folder, number)) == dead:
        return True
    _file(folder, number + 1).remove()
    return False


def _renew(folder: StoragePath, number: int, own: _Lease, over: threading.Event, on_lost: Callable[[], None]) -> None:
    renewed = 0
    while not over.wait(RENEW_S):
        with contextlib.suppress(OSError, MustError):  # the storage does not answer for a moment: try again later
            if not _is_held(folder, number, own):
                on_lost()
                return
            renewed += 1
            _renewals(folder, number, own).write(str(renewed).encode())


def _is_held(folder: StoragePath, number: int, own: _Lease) -> bool:
    """Return True if the lease is still ours and nobody created a later one that stays.

    One that was created on top of a lease that was gone by then is given up by its creator at once.
    """
    for _ in range(max(1, round(GIVEN_UP_S / POLL_S))):
        numbers = _numbers(folder)  # first: whoever took over removes our lease before its own
        if not _is_ours(folder, number, own):
            return False
        if max(numbers, default=-1) == number:
            return True
        time.sleep(POLL_S)
    return False


def _is_ours(folder: StoragePath, number: int, own: _Lease) -> bool:
    """Return True if the lease of this number is ours: another process may have released ours and reused the number."""
    lease = _Lease.read(_file(folder, number))
    return lease is not None and lease.token == own.token
