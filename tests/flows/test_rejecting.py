"""Images and labels that were rejected in the browser are left out by the next run, and its plan says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import must
from cli.export import LabelExport, export_labels
from flows.plan.selection import Selection
from flows.run.run import Outcome
from pipeline.errors import ConfigError, DataError
from pipeline.recipe.reader import read_recipe
from pipeline.recipe.student import StudentConfig
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.stores.naming import store_name
from pipeline.stores.rejections import PATH, reject, undo_reject
from student.dataset import heads_of, student_dataset
from tests.flows.tiny import output_without_heavy_imports

Whys = dict[str, str]


@pytest.fixture
def copy(finished_root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_root, tmp_path / "copy")


def to_run(recipe: Path, root: Path | str, *overrides: str) -> Whys:
    """Return the steps that would be run, and why."""
    return {p.step.name: p.why for p in must.plan(recipe, root, list(overrides)) if p.artifact is None}


def used(outcome: Outcome) -> list[str]:
    """Return the keys of the pool's images, without those of the set with true labels."""
    rows = outcome.artifacts["pool"].load("pool.parquet", pq.read_table).to_pylist()
    return [row["key"] for row in rows if row["used"] and row["set"] == "pool"]


def drawn(outcome: Outcome) -> dict[str, set[str]]:
    """Return the heads that have a label of each image that the student learns from, by key."""
    made = outcome.artifacts
    runtime = Runtime(made["pool"].root)
    inputs = Inputs({name: made[name] for name in made if name not in ("student", "evaluate")}, runtime)
    config = StudentConfig.model_validate(made["student"].manifest["config"]["student"])
    dataset = student_dataset(config, heads_of(config, inputs), inputs)
    return {dataset.read(index)[0]: set(dataset.values(index)) for index in range(len(dataset))}


def labels_of(teacher: Artifact) -> str:
    return store_name(teacher.manifest["step"].removeprefix("teacher."), teacher.digest)


def report(outcome: Outcome) -> str:
    assert outcome.folder
    text = (outcome.folder / "report.html").read().decode()
    assert "could not be shown" not in text
    return text


def test_rejections_are_planned_left_out_and_undone(copy: Path, recipe: Path) -> None:
    root, before = Root.of(copy), must.run(recipe, copy)
    before_digests = {name: made.digest for name, made in before.artifacts.items()}
    assert before.ran == 0
    assert "rejected" not in report(before)
    bad, worse, wrong = used(before)[3:6]
    reject(root, [bad], None, "blurred")
    reject(root, [wrong], labels_of(before.artifacts["teacher.masks"]), "sky is road")
    assert to_run(recipe, copy) == {
        "rejected.images": "never made here",
        "rejected.labels": "never made here",
        "pool": "new rejected.images; waits for rejected.images",
        "label": "waits for pool; runs unless its result is as before",
        "student": "new rejected.labels; waits for pool, label, rejected.labels",
        "evaluate": "waits for student; runs unless its result is as before",
    }
    after = must.run(recipe, copy)
    assert after.ran == 6
    assert after.artifacts["label"].digest == before.artifacts["label"].digest
    assert after.artifacts["student"].digest != before.artifacts["student"].digest
    all_drawn, rest_drawn = drawn(before), drawn(after)
    assert all_drawn.keys() - rest_drawn.keys() == {bad}
    assert {key for key in rest_drawn if rest_drawn[key] != all_drawn[key]} == {wrong}
    assert rest_drawn[wrong] == {"gabor"}
    assert after.artifacts["pool"].counts["left_out"] == {"rejected": 1}
    assert after.artifacts["student"].counts["rejected"] == {"masks": 1}
    for said in ("1 image left out: rejected", "rejected by hand, and left out: 1 by masks"):
        assert said in report(after)
    assert to_run(recipe, copy) == {}
    check_plan_of_another_rejection(root, recipe, worse)
    undo_reject(root, [bad], None)
    undo_reject(root, [wrong], labels_of(before.artifacts["teacher.masks"]))
    assert list((copy / "labels").glob("*.parquet")) == []
    undone = must.run(recipe, copy)
    assert undone.ran == 0
    assert {name: made.digest for name, made in undone.artifacts.items()} == before_digests


def check_plan_of_another_rejection(root: Root, recipe: Path, key: str) -> None:
    """Check that the plan shows another rejection, and undo it."""
    reject(root, [key], None, "dark")
    whys = to_run(recipe, str(root))
    assert whys.keys() == {"rejected.images", "pool", "label", "student", "evaluate"}
    assert whys["rejected.images"].startswith("rejected.count: 1 -> 2; rejected.sha256: '")
    assert whys["pool"] == "waits for rejected.images; runs unless its result is as before"
    said = output_without_heavy_imports("plan", recipe, "--root", root)
    assert "rejected.count: 1 -> 2" in " ".join(said.split())
    undo_reject(root, [key], None)


def test_rejected_labels_are_not_exported(copy: Path, recipe: Path, tmp_path: Path) -> None:
    """No run is needed for that, unless images were rejected."""
    root, before = Root.of(copy), must.run(recipe, copy)
    read = read_recipe(recipe)
    masks, worse, wrong = export_labels(read, root, LabelExport("masks", tmp_path / "before")), *used(before)[3:5]
    reject(root, [wrong], labels_of(before.artifacts["teacher.masks"]), "sky is road")
    without = export_labels(read, root, LabelExport("masks", tmp_path / "without"))
    assert (masks["splits"]["train"], without["splits"]["train"]) == (48, 47)
    reject(root, [worse], None, "blurred")
    with pytest.raises(
        DataError, match=r"there is nothing for pool, label as .*`must label` with this recipe and root"
    ):
        export_labels(read, root, LabelExport("masks", tmp_path / "stale"))
    must.run(recipe, copy, steps=Selection("label"))
    assert export_labels(read, root, LabelExport("masks", tmp_path / "less"))["splits"]["train"] == 46


def test_plan_says_that_the_list_of_rejections_is_gone(copy: Path, recipe: Path) -> None:
    root, before = Root.of(copy), must.run(recipe, copy)
    reject(root, used(before)[:1], None, "blurred")
    must.run(recipe, copy, steps=Selection("pool"))
    shutil.rmtree(copy / before.artifacts["pool"].path)
    (root / PATH).remove()
    assert to_run(recipe, copy)["pool"] == "without rejected.images"


def test_rejections_of_an_unused_label_version_change_nothing(copy: Path, recipe: Path) -> None:
    """The student is trained again, as there is a list now, with the same result."""
    root, before = Root.of(copy), must.run(recipe, copy)
    reject(root, used(before), "masks-0123456789ab", "sky is road")
    after = must.run(recipe, copy)
    assert after.artifacts["student"].digest == before.artifacts["student"].digest
    assert after.artifacts["pool"].path == before.artifacts["pool"].path
    assert after.artifacts["evaluate"].path == before.artifacts["evaluate"].path
    assert after.ran == 2
    assert after.artifacts["student"].counts["unmatched_rejections"] == len(used(before))
    assert "rejected by hand" not in report(after)
    warning = f"{len(used(before))} rejected labels are of other versions of masks, and"
    assert warning in report(after)


def test_rejections_reach_runs_of_some_steps(copy: Path, recipe: Path) -> None:
    before = must.run(recipe, copy)
    reject(Root.of(copy), used(before)[:1], None, "blurred")
    with pytest.raises(ConfigError, match=r"'pool' can't run alone: rejected\.images would have to run first"):
        must.run(recipe, copy, steps=Selection(only="pool"))
    assert must.run(recipe, copy, steps=Selection(only="rejected.images")).ran == 1
    assert must.run(recipe, copy, steps=Selection("pool")).ran == 1
    assert must.run(recipe, copy, steps=Selection("pool", force=("rejected.images",))).ran == 1
    assert must.run(recipe, copy, steps=Selection("pool", start="rejected.images")).ran == 2
    assert must.run(recipe, copy, steps=Selection("pool")).ran == 0


def test_plan_names_a_damaged_list_of_rejections(copy: Path, recipe: Path) -> None:
    (copy / PATH).write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"labels/rejected\.parquet: not a readable list of rejections"):
        must.plan(recipe, copy)


@pytest.fixture
def remote(bucket: str, finished_root: Path) -> str:
    """Return a finished run, copied to a bucket."""
    from tests.s3 import system  # noqa: PLC0415 - loads the server

    for folder in ("artifacts", "labels", "runs", "machine"):
        system().put(str(finished_root / folder), f"{bucket.removeprefix('s3://')}/root/", recursive=True)
    return f"{bucket}/root"


@pytest.mark.slow
def test_rejections_on_a_remote_root(remote: str, recipe: Path, copy: Path) -> None:
    ends = []
    for root in (remote, copy):
        before = must.run(recipe, root, steps=Selection("student"))
        reject(Root.of(root), used(before)[:1], None, "blurred")
        reject(Root.of(root), used(before)[1:2], labels_of(before.artifacts["teacher.masks"]), "wrong")
        after = must.run(recipe, root, steps=Selection("student"))
        assert (before.ran, after.ran) == (0, 5)
        ends.append({name: made.digest for name, made in after.artifacts.items()})
    assert ends[0] == ends[1]
