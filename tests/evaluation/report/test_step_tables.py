"""Tables of single steps: what was measured, or else counted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evaluation.measurement import MEASUREMENTS_FILE
from evaluation.report.formatting import DASH
from evaluation.report.run_record import RunRecord
from evaluation.report.step_tables import labels_by_maker, step_table
from pipeline.steps.artifact import Artifact, contents, write_json
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root

if TYPE_CHECKING:
    from tests.conftest import World


def rows_of(artifact: Artifact, folder: Path, **others: Artifact) -> list[list[str]]:
    """Return head and rows of a step's table as text; [] if it has none."""
    step = artifact.manifest["step"]
    table = step_table(RunRecord(StoragePath.of(str(folder)), {**others, step: artifact}), artifact)
    rows = [[str(getattr(cell, "text", cell)) for cell in row] for row in table.rows] if table else []
    return [list(table.head), *rows] if table else []


def artifact_of(folder: Path, kind: str, counts: dict[str, Any], **files: Any) -> Artifact:
    """Return an artifact of a kind with these counts, and files of JSON."""
    for name, value in files.items():
        write_json(folder / f"{name}.json", value)
    manifest = {"kind": kind, "step": kind, "section": [kind], "counts": counts, "config": {"start": {"step": None}}}
    return Artifact(Root.of(folder), "", {**manifest, **contents(folder)})


def test_step_table_of_a_set_counts_images_and_labels_by_split(world: World, tmp_path: Path) -> None:
    head, *rows = rows_of(world.artifacts["data.truth"], tmp_path)
    counts = world.artifacts["data.truth"].counts
    assert head[:2] == ["split", "images"]
    assert rows[0][:3] == ["train", str(counts["images.train"]), str(counts[f"labels.{head[2]}.train"])]


def test_step_table_of_a_teacher_has_all_metrics_beside_the_baseline(world: World, tmp_path: Path) -> None:
    head, *rows = rows_of(world.artifacts["teacher.depth"], tmp_path)
    counts = world.artifacts["teacher.depth"].counts
    assert head == ["metric", "teacher", "baseline"]
    assert rows == [
        [name, f"{value:.3f}", f"{counts['baseline'][name]:.3f}"] for name, value in counts["scores"].items()
    ]
    assert rows_of(world.artifacts["teacher.gabor"], tmp_path) == [], "nothing was measured"


def test_step_table_of_pool_and_labels_counts_images(world: World, tmp_path: Path) -> None:
    pool, label = world.artifacts["pool"], world.artifacts["label"]
    assert sum(int(images) for _, images in rows_of(pool, tmp_path)[1:]) == pool.counts["images"]
    assert [row[0] for row in rows_of(label, tmp_path)[1:]] == [each.maker for each in labels_by_maker(label)]


def test_step_table_of_a_student_has_loss_and_kept_labels_by_head(tmp_path: Path) -> None:
    kept = {
        "depth": {"task": "depth", "held": [4.0], "kept": [4.0]},
        "parts": {"task": "segmentation", "held": [3.0, 1.0], "kept": [1.0, 0.0]},
    }
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "train.jsonl").write_text('{"step": 1, "loss": 3.0, "losses": {"depth": 2.0}, "lr": 0.1}\n')
    assert rows_of(artifact_of(tmp_path, "student", {}, kept=kept), tmp_path)[1:] == [
        ["depth", "depth", "2.000", "100%"],
        ["parts", "segmentation", DASH, "25%"],
    ]


def test_step_table_of_a_stage_has_its_features(tmp_path: Path) -> None:
    features = {when: {"spread": 0.5, "rank": 8.0} for when in ("before", "after")}
    [_, row] = rows_of(artifact_of(tmp_path, "stage", {"features": features}), tmp_path)
    assert row == ["stage", "0.5", "0.5", "8", "8"]


def test_step_table_of_an_evaluation_has_student_teacher_and_baseline(tmp_path: Path) -> None:
    shared = {"head": "d", "task": "depth", "dataset": "rooms", "split": "test", "n": 3, "seed": 0, "protocol": "p"}
    records = [
        {**shared, "metric": "rmse", "better": "lower", "model": model, "value": value}
        for model, value in (("student", 0.5), ("teacher:d", 0.25))
    ]
    [_, row] = rows_of(artifact_of(tmp_path, "evaluate", {}, metrics=records), tmp_path)
    assert row == ["d (depth)", "rooms", "rmse ↓", "0.500", "0.250", DASH]


@pytest.mark.parametrize("kind", ["probe", "finetune", "compare_probe"])
def test_step_table_of_measurements_has_their_means(tmp_path: Path, kind: str) -> None:
    record = {
        "start": "student", "dataset": "kinds", "task": "classification", "split": "test", "n": 9, "protocol": "knn@1",
        "about": "", "labels": 100, "metric": "accuracy", "better": "higher", "corruption": "none",
        "backbone": "resnet18", "asked": "all",
    }  # fmt: skip
    records = [{**record, "seed": seed, "value": value} for seed, value in enumerate((0.5, 0.7))]
    artifact = artifact_of(tmp_path, kind, {}, **{MEASUREMENTS_FILE.removesuffix(".json"): records})
    assert rows_of(artifact, tmp_path)[1:] == [["classification", "knn@1", "100", "accuracy", "60.0 ± 14.1"]]


def test_step_table_of_another_kind_is_none(tmp_path: Path) -> None:
    assert rows_of(artifact_of(tmp_path, "mine", {}), tmp_path) == []
