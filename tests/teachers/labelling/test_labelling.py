"""The labelling step: complete shards or none, only missing ones, deterministic bytes, and bounded work in flight."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import tasks
from ingest.dataset import IngestedSet
from ingest.pool import pool_shards
from pipeline.data.decode import decode_image
from pipeline.data.loader import stack_images
from pipeline.errors import DataError, Stopped
from pipeline.steps.artifact import Artifact, Inputs, read_json
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root, local_file
from pipeline.stores.images import ImageShard
from pipeline.stores.labels import LabelShard
from tasks.inference import phases
from tasks.network import Network, NetworkConfig
from tasks.prediction import Predictor, network_predictor
from tasks.teacher import Teacher
from teachers.labelling import label_folder, labeller
from teachers.labelling.inference import ShardInference, ShardRows, label_batches
from tests.disk import folder_of
from tests.steps import make_step
from tests.teachers.labelling.sandbox import CONFIG, LabelSandbox, MakeSandbox

if TYPE_CHECKING:
    from tests.conftest import World


@pytest.fixture
def damaged(make_sandbox: MakeSandbox, tmp_path: Path) -> tuple[LabelSandbox, ImageShard, int]:
    """A sandbox in which one image's bytes are zeros; its shard, and its row."""
    sandbox = make_sandbox("damaged")
    made = sandbox.inputs["data.pool"]
    shutil.copytree(folder_of(made), tmp_path / "copy")
    copied = Artifact(Root.of(tmp_path), "copy", made.manifest)
    shard, row = IngestedSet(copied).images("train").shards[0], 1
    with open(shard.tar.path, "r+b") as file:
        file.seek(shard.row(row).offset)
        file.write(bytes(shard.row(row).length))
    sandbox.inputs = Inputs({**sandbox.inputs.artifacts, "data.pool": copied}, sandbox.inputs.runtime)
    return sandbox, shard, row


def test_label_pool_labels_every_shard_in_order_for_every_teacher(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox()
    counts = sandbox.label()
    teachers, shards = sandbox.inputs.of_kind("teacher"), sandbox.shards()
    assert counts["labelled_now"] == sum(len(shard) for shard in shards)
    assert counts["shards"] == len(sandbox.files()) == len(teachers) * len(shards)
    for name, teacher in teachers.items():
        for shard in shards:
            path = sandbox.root / "labels" / f"{name}-{teacher.digest[:12]}" / f"{shard.sha256[:16]}.parquet"
            table = pq.read_table(path, columns=["key", "status"]).to_pydict()
            assert table == {"key": shard.keys, "status": ["ok"] * len(shard)}


def leave_student(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Save an untrained student with these heads."""
    torch.manual_seed(0)
    small = NetworkConfig(heads=config["heads"], backbone="test_resnet", image_size=32, width=16, proposals=16)
    Network(small).save(out)
    return {}


def test_label_pool_by_student_runs_all_heads_at_once(
    make_sandbox: MakeSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = make_sandbox()
    teachers = sandbox.inputs.of_kind("teacher")
    heads = {name: Teacher.load(made).space.to_json() for name, made in teachers.items()}
    step = make_step("student", f"{__name__}:leave_student", {"heads": heads})
    student = Workspace(sandbox.inputs.runtime.root).make(step, Inputs({}, sandbox.inputs.runtime))
    artifacts = {name: made for name, made in sandbox.inputs.artifacts.items() if not name.startswith("teacher.")}
    sandbox.inputs = Inputs({**artifacts, "student": student}, sandbox.inputs.runtime)
    passes, forward = [], Network.forward

    def counted(self: Network, *given: Any) -> Any:
        passes.append(given)
        return forward(self, *given)

    monkeypatch.setattr(Network, "forward", counted)
    counts = sandbox.label()
    assert (counts["labelled_now"], counts["failed"]) == (sum(len(shard) for shard in sandbox.shards()), 0)
    assert len(passes) == sum(-(-len(shard) // CONFIG["batch"]) for shard in sandbox.shards())
    assert {Path(name).parent.name for name in sandbox.files()} == {
        f"student-{name}-{student.digest[:12]}" for name in teachers
    }
    assert sandbox.label()["labelled_now"] == 0
    shard, predictor = sandbox.shards()[0], network_predictor(student.load_all(Network.load))
    images = [predictor.preprocessing(decode_image(shard.read(row)), size) for row, size in enumerate(shard.sizes)]
    predictions = predictor.predict(stack_images(images), shard.sizes)
    for name, made in teachers.items():
        label = tasks.label(Teacher.load(made).space)
        stored = LabelShard(
            local_file(sandbox.root / f"labels/student-{name}-{student.digest[:12]}/{shard.address}.parquet"), label
        )
        for row, size in enumerate(shard.sizes):
            expected = label.decode(label.encode(predictor.values(predictions, row, size)[name]))
            found = stored.value(row, 0.0) or {}
            assert found.keys() == expected.keys()
            for part in found:
                np.testing.assert_allclose(found[part], expected[part], rtol=1e-2, atol=1e-2, err_msg=f"{name} {part}")


def test_label_pool_gives_same_bytes_for_any_number_of_threads(make_sandbox: MakeSandbox) -> None:
    sandboxes = [make_sandbox("one"), make_sandbox("three", workers=3), make_sandbox("again", workers=3)]
    for sandbox in sandboxes:
        sandbox.label()
    assert sandboxes[0].files() == sandboxes[1].files() == sandboxes[2].files()


def test_label_pool_batch_changes_only_rounding(make_sandbox: MakeSandbox) -> None:
    """Libraries choose kernels by the batch size, so the last bits may differ."""
    one, other = make_sandbox("one"), make_sandbox("other")
    one.label(batch=1)
    other.label(batch=4)
    assert one.files().keys() == other.files().keys()
    for name in one.files():
        left, right = (pq.read_table(sandbox.root / "labels" / name).to_pydict() for sandbox in (one, other))
        assert left["key"] == right["key"]
        np.testing.assert_allclose(left["confidence"], right["confidence"], rtol=1e-3)


def test_label_pool_marks_only_the_damaged_image_as_failed(
    make_sandbox: MakeSandbox, damaged: tuple[LabelSandbox, ImageShard, int]
) -> None:
    sound, (sandbox, shard, row) = make_sandbox(), damaged
    sound.label()
    assert sandbox.label(max_failed=0.5)["failed"] == len(sandbox.inputs.of_kind("teacher"))
    assert sandbox.files().keys() == sound.files().keys()
    for name in sandbox.files():
        expected, found = (pq.read_table(each.root / "labels" / name).to_pylist() for each in (sound, sandbox))
        if Path(name).stem == shard.sha256[:16]:
            lost = found.pop(row)
            assert expected.pop(row)["key"] == lost["key"]
            assert lost["status"] == "failed"
            assert "not an image" in lost["reason"]
            assert {column for column, cell in lost.items() if cell is not None} == {"key", "status", "reason"}
        assert found == expected


def test_label_pool_fails_labels_that_are_not_finite(
    make_sandbox: MakeSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the head that says NaN of an image alone: its label is "failed", with the reason; others are as they are."""
    sandbox, sound, real = make_sandbox("nan"), make_sandbox(), Predictor.values
    sound.label()

    def values(self: Predictor, predictions: Any, index: int, size: tuple[int, int]) -> dict[str, Any]:
        found = real(self, predictions, index, size)
        if index == 0 and "depth" in found:
            found["depth"]["depth"] = np.full_like(found["depth"]["depth"], np.nan)
        return found

    monkeypatch.setattr(Predictor, "values", values)
    failed = sandbox.label(max_failed=1)["failed"]
    rows = [row for name in sandbox.files() for row in pq.read_table(sandbox.root / "labels" / name).to_pylist()]
    lost = [row for row in rows if row["status"] != "ok"]
    assert len(lost) == failed > 0
    assert all(row["reason"].startswith("the model's depth are not finite") for row in lost)
    assert all(row["confidence"] is None for row in lost)
    assert {name for name, data in sandbox.files().items() if data != sound.files()[name]} == {
        name for name in sandbox.files() if name.startswith("depth")
    }
    with pytest.raises(DataError, match=r"labels failed, more than labelling\.max_failed"):
        make_sandbox("strict").label()


def test_label_pool_refuses_more_failures_than_max_failed(damaged: tuple[LabelSandbox, ImageShard, int]) -> None:
    sandbox, shard, _ = damaged
    with pytest.raises(DataError, match=rf"labels failed, more than labelling.max_failed = 0.01.*{shard.name}"):
        sandbox.label(max_failed=0.01)


def test_label_pool_again_labels_only_missing_shards(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox()
    sandbox.label()
    before, times = sandbox.files(), sandbox.times()
    assert sandbox.label()["labelled_now"] == 0
    gone, *_, cut = before
    (sandbox.root / "labels" / gone).unlink()
    (sandbox.root / "labels" / cut).write_bytes(before[cut][:-20])
    missing = {Path(name).stem for name in (gone, cut)}
    counts = sandbox.label()
    assert counts["labelled_now"] == sum(len(s) for s in sandbox.shards() if s.sha256[:16] in missing)
    assert sandbox.files() == before
    assert {name for name, then in sandbox.times().items() if then != times[name]} == {gone, cut}


def test_label_makers_reads_no_shards_known_to_previous_artifact(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = dataclasses.replace(world.inputs("label"), previous=world.artifacts["label"])
    shards = [(name, shard) for name, shard, _ in pool_shards(inputs["pool"], inputs.of_kind("data"))]
    monkeypatch.setattr(label_folder, "read_facts", lambda *_: pytest.fail("it was read"))
    assert labeller.pending_jobs(labeller.label_makers(inputs), shards) == []


def test_label_pool_with_new_teacher_keeps_other_label_shards(make_sandbox: MakeSandbox) -> None:
    sandbox, at_once = make_sandbox(), make_sandbox("at once")
    sandbox.label(without=("teacher.gabor", "teacher.boxes"))
    times = sandbox.times()
    assert not any(name.startswith(("gabor", "boxes")) for name in times)
    sandbox.label()
    at_once.label()
    assert {name: then for name, then in sandbox.times().items() if name in times} == times
    assert sandbox.files() == at_once.files()


def test_label_pool_stopped_leaves_complete_shards_and_resumes(make_sandbox: MakeSandbox) -> None:
    undisturbed = make_sandbox("undisturbed")
    undisturbed.label(batch=2)
    calls = []

    def stop_at_the_third(*report: Any) -> None:
        calls.append(report)
        if len(calls) == 3:
            sandbox.inputs.runtime.stop.set()

    sandbox = make_sandbox(workers=2, progress=stop_at_the_third)
    with pytest.raises(Stopped):
        sandbox.label(batch=2)
    teachers = len(sandbox.inputs.of_kind("teacher"))
    assert len(sandbox.files()) == teachers, "the first shard and none of the second"
    assert sandbox.files().items() <= undisturbed.files().items()
    sandbox.inputs.runtime.stop.clear()
    sandbox.label(batch=2)
    assert sandbox.files() == undisturbed.files()


def test_label_pool_leaves_no_partial_shard_after_an_error(make_sandbox: MakeSandbox, monkeypatch: Any) -> None:
    sandbox = make_sandbox(workers=2)

    def broken(*_: Any) -> Any:
        raise RuntimeError("out of order")

    monkeypatch.setattr(Predictor, "values", broken)
    with pytest.raises(RuntimeError, match="out of order"):
        sandbox.label()
    assert sandbox.files() == {}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("label", "prefetch"))]


class ThreadRecorder:
    """A predictor that records which threads call it."""

    def __init__(self, real: Predictor) -> None:
        self.real, self.preprocessing, self.threads = real, real.preprocessing, set[threading.Thread]()
        self.compute, self.upload = real.compute, real.upload

    def start(self, *given: Any, **more: Any) -> Any:
        self.threads.add(threading.current_thread())
        return self.real.start(*given, **more)

    def values(self, *given: Any) -> Any:
        assert threading.current_thread() not in self.threads
        return self.real.values(*given)


def test_label_batches_on_gpu_runs_models_in_one_thread_with_same_labels(
    make_sandbox: MakeSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox, here = make_sandbox("gpu", workers=2), make_sandbox("cpu")
    here.label()
    made: list[ThreadRecorder] = []

    def load(*given: Any) -> ThreadRecorder:
        made.append(ThreadRecorder(real_load(*given)))
        return made[-1]

    real_load = labeller.load_teacher
    monkeypatch.setattr(labeller, "load_teacher", load)
    monkeypatch.setattr(phases, "find_device", lambda _: "cuda")
    sandbox.label()
    assert len(made) == len(sandbox.inputs.of_kind("teacher"))
    assert all(predictor.threads == {threading.current_thread()} for predictor in made)
    assert sandbox.files() == here.files()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_label_batches_bounds_work_in_flight(
    make_sandbox: MakeSandbox, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Batches that are decoded or labelled and not yet taken stay within a few per thread, however long the pool."""
    threads, begun = 3, []
    shard = make_sandbox().shards()[0]
    todo = [ShardInference(shard, {}, {})] * 50

    def load(self: ShardInference, rows: range) -> ShardRows:
        begun.append(rows)
        return self.new_batch(rows)

    monkeypatch.setattr(phases, "find_device", lambda _: device)
    monkeypatch.setattr(ShardInference, "load", load)
    monkeypatch.setattr(ShardInference, "infer_all", lambda self, batch: batch)
    monkeypatch.setattr(ShardInference, "encode_all", lambda self, batch: batch)
    total = sum(len(each.batches(1)) for each in todo)
    for taken, _ in enumerate(label_batches(todo, 1, Runtime(Root.of("."), workers=threads)), start=1):
        if taken % 40 == 1:
            time.sleep(0.05)  # time to run ahead
        assert len(begun) - taken <= 2 * threads + 1
    assert taken == len(begun) == total


def test_label_pool_writes_nothing_if_a_teacher_may_not_label(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox()
    with pytest.raises(DataError, match="'depth' may not label"):
        sandbox.label(require={**CONFIG["require"], "depth": {"delta_1.25": 1.5}})
    assert sandbox.files() == {}


def test_label_pool_labels_only_the_sets_of_a_teacher(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox()
    sandbox.label(labels={"depth": ["truth"]})
    entries = read_json(sandbox.root / "index" / "labels.json")
    sets = {teacher: {each["set"] for each in entries if each["teacher"] == teacher} for teacher in ("depth", "masks")}
    assert sets == {"depth": {"truth"}, "masks": {"pool", "truth"}}
    shards = [
        shard
        for name, shard, _ in pool_shards(sandbox.inputs["pool"], sandbox.inputs.of_kind("data"))
        if name == "truth"
    ]
    depth = {Path(name).stem for name in sandbox.files() if name.startswith("depth-")}
    assert depth == {shard.address for shard in shards}
