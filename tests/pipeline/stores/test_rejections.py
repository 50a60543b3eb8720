"""The list of rejections: always intact, and no writer undoes the change of another."""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, DataError, Shortage
from pipeline.steps import ranks
from pipeline.storage import lock
from pipeline.storage.lock import hold_lock
from pipeline.storage.process_id import ProcessId
from pipeline.storage.root import Root
from pipeline.stores import rejections
from pipeline.stores.rejections import (
    PATH,
    SCHEMA,
    hash_rejections,
    read_rejections,
    reject,
    rejected_images,
    rejected_labels,
    undo_reject,
)
from tests.processes import Launcher

MASKS, OLD_MASKS, BOXES = "masks-0123456789ab", "masks-ba9876543210", "boxes-0123456789ab"


def keys(*numbers: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest()[:16] for number in numbers]


def listed(root: Root) -> list[tuple[str, str | None, str]]:
    rows = read_rejections(root).to_pylist()
    return [(row["key"], row["store"], row["reason"]) for row in rows]


def hash_of(root: Root) -> str:
    return hash_rejections(read_rejections(root))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.of(tmp_path / "root")


def test_reject_and_undo_reject_images_and_labels(any_root: Root) -> None:
    one, two, three = keys(1, 2, 3)
    assert listed(any_root) == []
    assert len(reject(any_root, [one, two], None, "blurred")) == 2
    assert len(reject(any_root, [two, three], MASKS, "sky is road")) == 2
    table = read_rejections(any_root)
    assert table.schema.equals(SCHEMA, check_metadata=True)
    assert all(time.time() - 60 < each.as_py().timestamp() < time.time() + 1 for each in table["time"])
    blurred = [(one, None, "blurred"), (two, None, "blurred")]
    assert listed(any_root) == [*blurred, (two, MASKS, "sky is road"), (three, MASKS, "sky is road")]
    assert undo_reject(any_root, [two], None) == 1
    assert undo_reject(any_root, [two], BOXES) == 0
    assert listed(any_root) == [(one, None, "blurred"), (two, MASKS, "sky is road"), (three, MASKS, "sky is road")]
    assert undo_reject(any_root, [one], None) == 1
    assert undo_reject(any_root, [three, two, one], MASKS) == 2
    assert listed(any_root) == []
    assert any_root.path.files() == {}, "an empty list, or a lease, was left"


def test_reject_again_changes_only_the_reason(root: Root) -> None:
    reject(root, keys(1, 2), None, "blurred")
    before = read_rejections(root)
    written = (root / PATH).modified()
    assert len(reject(root, keys(2, 1), None, "blurred")) == 0
    assert (root / PATH).modified() == written
    assert len(reject(root, keys(3, 2), None, "  too\n dark ")) == 1
    after = read_rejections(root)
    assert after["reason"].to_pylist() == ["blurred", "blurred", "too dark"], "of what is listed, nothing changes"
    assert after["time"].to_pylist()[:2] == before["time"].to_pylist()


def test_reject_counts_a_repeated_key_once(root: Root) -> None:
    assert len(reject(root, keys(1, 1), None, "blurred")) == 1
    assert len(reject(root, [], None, "blurred")) == 0
    assert len(listed(root)) == 1


def test_hash_rejections_ignores_order_times_and_reasons(root: Root, tmp_path: Path) -> None:
    """It changes with everything else."""
    found = {hash_of(root)}
    reject(root, keys(1, 2), None, "blurred")
    reject(root, keys(1), MASKS, "sky is road")
    other = Root.of(tmp_path / "other")
    reject(other, keys(1), MASKS, "malformed")
    reject(other, keys(2), None, "dark")
    found.add(hash_of(other))
    reject(other, keys(1), None, "dark")
    assert hash_of(other) == hash_of(root)
    found.add(hash_of(root))
    reject(other, keys(1), BOXES, "dark")
    found.add(hash_of(other))
    undo_reject(other, keys(1), MASKS)
    found.add(hash_of(other))
    assert len(found) == 5
    undo_reject(root, keys(1, 2), None)
    undo_reject(root, keys(1), MASKS)
    assert hash_of(root) in found


def test_rejected_images_and_rejected_labels_of_some_teachers(root: Root) -> None:
    reject(root, keys(1), None, "blurred")
    for number, store in enumerate((MASKS, OLD_MASKS, BOXES, "more_masks-0123456789ab")):
        reject(root, keys(number), store, "malformed")
    table = read_rejections(root)
    assert rejected_images(table)["key"].to_pylist() == keys(1)
    assert rejected_labels(table, ["masks", "depth"])["store"].to_pylist() == [MASKS, OLD_MASKS]
    assert len(rejected_labels(table, [])) == 0


@pytest.mark.parametrize(
    ("malformed", "store", "reason", "message"),
    [
        (["0123"], None, "blurred", "key '0123' is no image's key: those are 16 hex digits"),
        (
            keys(1),
            "masks",
            "malformed",
            "store 'masks' is no label store: .* the teacher's name, a dash and 12 hex digits",
        ),
        (keys(1), f"labels/{MASKS}", "malformed", "is no label store"),
        (keys(1), None, " \n", r"reason ' \\n' is empty"),
    ],
)
def test_reject_refuses_malformed_keys_stores_and_reasons(
    root: Root, malformed: list[str], store: str | None, reason: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        reject(root, malformed, store, reason)
    assert root.path.files() == {}


def as_parquet(table: pa.Table) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream)
    data: bytes = stream.getvalue().to_pybytes()
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable list of rejections"),
        (b"PAR1 and no more", "not a readable list of rejections"),
        (as_parquet(pa.table({"key": keys(1)})), "its columns are not key, store, reason, time"),
        (as_parquet(SCHEMA.with_metadata({"must_rejected": "2"}).empty_table()), "'2'; this version reads 1"),
    ],
)
def test_read_rejections_names_a_damaged_list_and_reject_leaves_it(any_root: Root, data: bytes, message: str) -> None:
    file = any_root / PATH
    file.write(data)
    for use in (read_rejections, lambda root: reject(root, keys(1), None, "blurred")):
        with pytest.raises(DataError, match=message) as error:
            use(any_root)
        assert str(error.value).startswith(f"{file}: ")
        assert "delete it: then nothing is rejected" in str(error.value)
    assert file.read() == data


def reject_and_undo(path: str, environ: Mapping[str, str]) -> int:
    """Reject images of this rank one by one, and undo every other one."""
    os.environ.update(environ)
    lock.POLL_S = 0.01
    root, first = Root.of(path), 100 * ranks.rank()
    for number in range(first, first + 6):
        reject(root, keys(number), None, "blurred")
        if number % 2:
            undo_reject(root, keys(number), None)
    return first


def test_reject_in_several_processes_keeps_all_changes(launcher: Launcher, any_root: Root) -> None:
    environ = {name: value for name, value in os.environ.items() if name.startswith("AWS_") or name == "no_proxy"}
    assert launcher.call(3, reject_and_undo, str(any_root), environ) == [0, 100, 200]
    wanted = [number for first in (0, 100, 200) for number in range(first, first + 6, 2)]
    assert sorted(key for key, _, _ in listed(any_root)) == sorted(keys(*wanted))
    assert list(any_root.path.files()) == [PATH]


def test_reject_gives_up_waiting_and_names_the_holder(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejections, "WAIT_S", 0.05)
    monkeypatch.setattr(lock, "POLL_S", 0.02)
    number = ProcessId.current().number
    with (
        hold_lock(root / rejections.LOCK, lambda _: None, lambda: None),
        pytest.raises(ConfigError, match=rf"rejected\.parquet: .* for 0\.05 s, now process {number} on"),
    ):
        reject(root, keys(1), None, "blurred")
    assert listed(root) == []


@pytest.mark.usefixtures("brisk_locks")
def test_reject_starts_again_after_losing_the_lock(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    reject(root, keys(1), None, "blurred")
    to_bytes = rejections._to_bytes
    taken = root / rejections.LOCK / "7.json"

    def sleeps(table: pa.Table) -> bytes:
        """Another process takes over, changes the list and is done."""
        monkeypatch.setattr(rejections, "_to_bytes", to_bytes)
        (root / PATH).write(to_bytes(read_rejections(root).slice(0, 0)))
        taken.write(json.dumps({"holder": ended, "token": "another"}).encode())
        return to_bytes(table)

    ended = {"machine": ProcessId.current().machine, "number": 1, "started": "before"}
    monkeypatch.setattr(rejections, "_to_bytes", sleeps)
    assert len(reject(root, keys(2), None, "blurred")) == 1
    assert [key for key, _, _ in listed(root)] == keys(2), "the change of the other process was undone"
    assert list(root.path.files()) == [PATH]


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, Shortage, r"rejected\.parquet: .*the disk that holds .* is full"),
        (errno.EROFS, ConfigError, r"rejected\.parquet: can't be changed \(Read-only file system\)"),
    ],
)
def test_reject_leaves_the_list_on_a_full_or_read_only_disk(
    root: Root, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], message: str
) -> None:
    reject(root, keys(1), None, "blurred")
    before = (root / PATH).read()

    def refuses(path: Path, data: bytes) -> int:
        path.open("wb").close()
        raise OSError(number, "No space left on device" if number == errno.ENOSPC else "Read-only file system")

    write: Callable[[Path, bytes], Any] = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda p, d: (refuses if "rejected.parquet" in p.name else write)(p, d))
    with pytest.raises(kind, match=message):
        reject(root, keys(2), None, "dark")
    monkeypatch.undo()
    assert (root / PATH).read() == before
    assert list(root.path.files()) == [PATH]


def test_reject_a_hundred_thousand_keys_is_fast(root: Root) -> None:
    many = [f"{number:016x}" for number in range(100_000)]
    began = time.process_time()
    assert reject(root, many, MASKS, "malformed") == many
    assert reject(root, many[50_000:], None, "blurred") == many[50_000:]
    assert len(reject(root, many, MASKS, "all wrong")) == 0
    assert len(hash_of(root)) == 64
    assert undo_reject(root, many[10:], MASKS) == 99_990
    assert time.process_time() - began < 5
    assert len(read_rejections(root)) == 50_010


def test_reject_stores_the_time_in_utc(root: Root) -> None:
    reject(root, keys(1), None, "blurred")
    found = read_rejections(root)["time"][0].as_py()
    assert found.tzinfo is not None
    assert abs(found - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=1)
