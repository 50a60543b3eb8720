"""Follow docs/extending.md: write its files into a package, and run everything they add in one small recipe."""

from __future__ import annotations

import contextlib
import csv
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pads
import pytest
from PIL import Image

import must
import tasks
from cli.main import main
from evaluation.measurement import MEASUREMENTS_FILE
from flows.plan.selection import Selection
from flows.run.run import Outcome
from ingest.init import write_recipe
from pipeline.recipe.reader import read_recipe
from pipeline.steps.artifact import read_json
from pipeline.stores.labels import LabelSpace

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
FILES = dict(re.findall(r'```python title="([^"]+)"\n(.*?)```', PAGE.read_text("utf-8"), re.DOTALL))
RECIPE = """
name: extended
runtime: {{runner: inline, device: cpu, precision: "32", workers: 1, trackers: [lines]}}
data:
  shots: {{kind: listed, path: "{shots}"}}
  kinds: {{kind: scenes, count: 12, val: 3, test: 4, seed: 3, size: 48, tasks: [classification]}}
teachers:
  bright: {{kind: luma}}
  learned: {{kind: supervised, task: brightness, data: shots, backbone: test_resnet, image_size: 32, steps: 30,
    batch: 4}}
pool: [shots]
student: {{backbone: test_resnet, image_size: 32, width: 16, steps: 4, batch: 4, weighting: equal}}
stages: [{{name: domain, method: simsiam, data: [shots], batch: 4, steps: 2, dim: 16}}]
evaluate: {{probes: [nearest_mean], probe_sets: [kinds]}}
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The packages of the project with the files of the page in them."""
    folder = tmp_path_factory.mktemp("plugins")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    (folder / "tasks" / "brightness" / "__init__.py").touch()
    packages = {str(Path(name).parent).replace("/", ".") for name in FILES} - {"tasks.brightness"} | {"tasks"}
    before = set(sys.modules)
    with contextlib.ExitStack() as undo:
        for name in packages:
            package = importlib.import_module(name)
            package.__path__.append(str(folder / name.replace(".", "/")))
            undo.callback(package.__path__.remove, str(folder / name.replace(".", "/")))
        importlib.invalidate_caches()
        yield
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def recipe(extended: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that names every plug-in of the page."""
    folder = tmp_path_factory.mktemp("extended")
    lines = ["file,split,brightness"]
    (folder / "shots").mkdir()
    for number in range(16):
        pixels = np.random.default_rng(number).integers(0, 16 * (number + 1), (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "shots" / f"{number}.png")
        lines.append(f"{number}.png,{'train' if number % 4 else 'test'},{pixels.mean() / 255}")
    (folder / "shots" / "list.csv").write_text("\n".join(lines), "utf-8")
    path = folder / "extended.yaml"
    path.write_text(RECIPE.format(shots=folder / "shots"), "utf-8")
    return path


@pytest.fixture(scope="module")
def outcome(recipe: Path) -> Outcome:
    return must.run(recipe, recipe.parent / "root")


def of_model(outcome: Outcome, model: str, metric: str) -> list[float]:
    found = [record["value"] for record in outcome.metrics if (record["model"], record["metric"]) == (model, metric)]
    assert found, f"{metric} of {model} is not in the report"
    return found


def test_page_has_a_file_for_each_section() -> None:
    sections = re.findall(r"^## (.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sections == [
        "A task",
        "A metric",
        "A format",
        "A form of export",
        "A kind of teacher",
        "A self-supervised method",
        "A probe",
        "A tracker",
        "A kind of step",
    ]
    assert len(FILES) == len(sections) + 2, "a task and a kind of step have two files"


def test_task_keeps_its_labels_on_disk(extended: None) -> None:
    label = tasks.label(LabelSpace("brightness"))
    value = {"brightness": np.array([0.25], np.float32)}
    assert label.decode(label.encode(value))["brightness"] == 0.25
    assert np.isnan(label.decode(label.encode({"brightness": np.array([np.nan], np.float32)}))["brightness"]).all()
    assert "brightness" in tasks.names()


def test_format_is_recognised_by_init(recipe: Path, tmp_path: Path) -> None:
    to = tmp_path / "mine.yaml"
    [line] = write_recipe([recipe.parent / "shots"], to)
    assert line == f"{recipe.parent / 'shots'}: listed, with labels for brightness; not read: 16 .png"
    entry = read_recipe(to).data["shots"]
    assert (entry.kind, must.plan(to, tmp_path / "root")[0].action) == ("listed", "run")


def test_format_is_ingested(outcome: Outcome) -> None:
    assert outcome.artifacts["data.shots"].counts["images"] == 16


def test_kind_of_teacher_labels_the_pool(outcome: Outcome, recipe: Path) -> None:
    [store] = (recipe.parent / "root" / "labels").glob("bright-*")
    labels = pads.dataset(store).to_table(columns=["key", "brightness"])
    listed = csv.DictReader((recipe.parent / "shots" / "list.csv").read_text("utf-8").splitlines())
    expected = sorted(float(row["brightness"]) for row in listed if row["split"] == "train")
    assert sorted(labels.column("brightness").to_pylist()) == pytest.approx(expected, abs=0.02)


def test_metric_measures_teacher_and_student(outcome: Outcome) -> None:
    assert min(of_model(outcome, "teacher:bright", "error")) < 0.02, "the mean of the pixels is the brightness"
    for model in ("teacher:bright", "teacher:learned", "student", "baseline"):
        assert all(0 <= error <= 1 for error in of_model(outcome, model, "error")), model
    assert {record["better"] for record in outcome.metrics if record["metric"] == "error"} == {"lower"}


def test_task_is_learned_by_teacher_and_student(outcome: Outcome) -> None:
    assert outcome.artifacts["teacher.learned"].counts["images"] == 12
    assert of_model(outcome, "student", "error")


def test_method_trains_a_stage(outcome: Outcome) -> None:
    losses = (outcome.artifacts["stage.domain"].load("log/train.jsonl", Path.read_text)).splitlines()
    assert len(losses) == 2
    assert all('"simsiam"' in line for line in losses)


def test_tracker_writes_the_numbers_of_a_run(outcome: Outcome) -> None:
    assert outcome.folder is not None
    lines = (Path(str(outcome.folder)) / "lines" / "numbers.txt").read_text("utf-8").splitlines()
    assert any(line.startswith("student loss ") for line in lines)


def test_probe_measures_backbones(outcome: Outcome) -> None:
    records: list[dict[str, Any]] = outcome.artifacts["probe.stage.domain.kinds"].load(MEASUREMENTS_FILE, read_json)
    assert {record["protocol"].split()[0] for record in records} == {"nearest_mean"}


def test_kind_of_step_is_planned_and_run(outcome: Outcome, recipe: Path) -> None:
    assert outcome.measures, "the report is named at the end, though the last step leaves no numbers"
    colors = outcome.artifacts["colors.shots"]
    assert colors.counts == {"images": 12}
    assert len(colors.load("colors.json", read_json)["mean"]) == 3
    alone = must.plan(recipe, recipe.parent / "root", steps=Selection("colors"))
    assert [each.step.name for each in alone] == ["data.shots", "data.kinds", "colors.shots", "colors.kinds"]
    assert all(each.artifact for each in alone)


def test_form_of_export_is_written(outcome: Outcome, recipe: Path, tmp_path: Path) -> None:
    root = str(recipe.parent / "root")
    with pytest.raises(SystemExit) as ended:
        main(["export", "labels", str(recipe), str(tmp_path / "out"), "--to", "words", "--root", root])
    assert not ended.value.code
    lines = (tmp_path / "out" / "labels.txt").read_text("utf-8").splitlines()
    assert len(lines) >= 12
    assert all("brightness 0." in line for line in lines)
