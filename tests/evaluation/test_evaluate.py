"""Test the step that measures student, teachers and baseline: on which images, against what, and its records."""

from __future__ import annotations

import dataclasses
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from evaluation.evaluate import AGREEMENT, PROTOCOL, evaluate
from pipeline.errors import Stopped
from pipeline.steps.artifact import Artifact, Inputs, read_json
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.stores.labels import LabelSpace
from tasks.network import Network
from tasks.teacher import Teacher, TeacherSchedule
from tests.disk import made_in, named
from tests.steps import make_step

if TYPE_CHECKING:
    from tests.conftest import World

FORMATS = Path(__file__).resolve().parents[2] / "docs" / "reference" / "formats.md"
KINDS = LabelSpace("classification", ("a", "b"))
PETS = LabelSpace("classification", ("cat", "dog"))
GROUND = LabelSpace("segmentation", ("sky", "road"))
TRAINED = ("kinds", "masks", "boxes", "depth")
"""The teachers of the tiny run that learned from true labels."""

Record = dict[str, Any]
Noise = Callable[..., NDArray[np.uint8]]
MakeSet = Callable[..., Artifact]
MakeModel = Callable[..., Artifact]
Measure = Callable[..., list[Record]]


def measure(inputs: Inputs, out: Path, **config: Any) -> list[Record]:
    """Run the step and return its records."""
    out.mkdir(exist_ok=True)
    counts = evaluate({"splits": "test", "sets": [], "seed": 0, **config}, inputs, out)
    records: list[Record] = read_json(out / "metrics.json")
    assert counts == {"records": len(records)}
    return records


def measured(records: Sequence[Record]) -> set[tuple[str, str, str, str]]:
    """Return (head, model, set, split) of all records."""
    return {(record["head"], record["model"], record["dataset"], record["split"]) for record in records}


def values(records: Sequence[Record], dataset: str) -> dict[str, float]:
    """Return the value of each model on a set with one head and one metric."""
    found = {record["model"]: record["value"] for record in records if record["dataset"] == dataset}
    assert len(found) == sum(record["dataset"] == dataset for record in records)
    return found


@pytest.fixture(scope="module")
def artifacts(world: World) -> dict[str, Artifact]:
    """Return the tiny run's artifacts with its student."""
    step, inputs = world.steps["student"], world.inputs("student")
    fingerprint = step.fingerprint(inputs.artifacts)
    return {**world.artifacts, "student": world.workspace.find(step, fingerprint) or world.workspace.make(step, inputs)}


@pytest.fixture(scope="module")
def records(world: World, artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Return the step's records in the tiny run."""
    step = world.steps["evaluate"]
    inputs = Inputs({name: artifacts[name] for name in step.inputs}, world.runtime)
    return measure(inputs, tmp_path_factory.mktemp("evaluate"), **step.config)


@pytest.fixture
def make_set(runtime: Runtime) -> MakeSet:
    """Return a function that ingests a set: (name, its keys in the recipe) -> artifact."""

    def make(name: str, **source: Any) -> Artifact:
        config = {"name": name, "source": source, "shard_images": 2}
        return Workspace(runtime.root).make(
            make_step(f"data.{name}", "ingest.ingest:ingest", config), Inputs({}, runtime)
        )

    return make


@pytest.fixture
def make_kinds(tmp_path: Path, noise: Noise, make_set: MakeSet) -> MakeSet:
    """Return a function that ingests images of classes a and b: (name, numbers by `<split>/<class>`) -> artifact."""

    def make(name: str, pictures: Mapping[str, Sequence[int]]) -> Artifact:
        for split in {folder.split("/")[0] for folder in pictures}:
            for kind in KINDS.classes:
                (tmp_path / name / split / kind).mkdir(parents=True)
        for folder, numbers in pictures.items():
            for number in numbers:
                Image.fromarray(noise(number)).save(tmp_path / name / folder / f"{number}.png")
        return make_set(name, kind="imagefolder", path=str(tmp_path / name))

    return make


@pytest.fixture
def make_model(tmp_path: Path, make_network: Callable[..., Network]) -> MakeModel:
    """Return a function that makes a classifier `kind` with a constant answer: (answer, its set) -> artifact, which
    serves as a teacher or a student.
    """

    def make(answer: str, data: str | None = "home") -> Artifact:
        network = make_network({"kind": KINDS})
        with torch.no_grad():
            network.get_parameter("heads.kind.weight").zero_()
            network.get_parameter("heads.kind.bias").copy_(torch.tensor([answer == name for name in KINDS.classes]))
        return saved(network, tmp_path / f"{answer} from {data}", data)

    return make


def saved(network: Network, folder: Path, data: str | None) -> Artifact:
    """Save a network as an artifact that is a student, and a teacher of its first head trained on the set `data`."""
    folder.mkdir()
    network.save(folder)
    space = next(iter(network.config.spaces().values()))
    Teacher("supervised", space, data, TeacherSchedule(4, 0.1, "adamw")).write(folder)
    return made_in(folder)


@pytest.fixture
def measure_small(runtime: Runtime, tmp_path: Path) -> Measure:
    """Return a function that runs the step: (inputs by name, settings) -> records."""

    def measure_in(inputs: Mapping[str, Artifact], **config: Any) -> list[Record]:
        artifacts = {name: named(name, made) for name, made in inputs.items()}
        return measure(Inputs(artifacts, runtime), tmp_path / "out", **config)

    return measure_in


def documented(table: int) -> list[tuple[str, list[str]]]:
    """Return the rows of the first or second table on metrics in `docs/reference/formats.md`: (first cell, names).

    Names are in the first column of the first table, in the second column of the second.
    """
    section = FORMATS.read_text("utf-8").split("\n## metrics.json\n")[1].split("\n## ")[0]
    tables = [part.splitlines()[2:] for part in section.split("\n\n") if part.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[table - 1]]
    return [(cells[0], re.findall(r"`([\w.]+)`", cells[table - 1])) for cells in rows]


def test_evaluate_records_have_the_documented_keys(records: list[Record]) -> None:
    keys = {name for _, names in documented(1) for name in names}
    assert {"model", "head", "task", "n", "protocol"} < keys
    for record in records:
        assert set(record) == keys
        assert isinstance(record["value"], float)
        assert math.isfinite(record["value"])
        assert record["better"] in ("higher", "lower")
        assert record["seed"] == 0


def test_evaluate_records_have_the_metric_by_class(records: list[Record], artifacts: dict[str, Artifact]) -> None:
    for record in records:
        classes = Teacher.load(artifacts[f"teacher.{record['head']}"]).space.classes
        values = {each["class"]: each["value"] for each in record["classes"]}
        assert set(values) <= set(classes)
        assert bool(values) == (record["metric"] in ("accuracy", "miou", "ap", "ap50", "r2"))
        if values and record["metric"] != "accuracy":
            assert np.mean(list(values.values())) == pytest.approx(record["value"])
        if record["metric"] == "accuracy":
            support = [each["support"] for each in record["classes"]]
            assert sum(support) == record["n"]
            assert np.average(list(values.values()), weights=support) == pytest.approx(record["value"])


def test_evaluate_records_have_all_metrics_of_the_task_once(records: list[Record]) -> None:
    metrics = {task: set(names) for task, names in documented(2)}
    for head, model, *_ in measured(records):
        found = [record for record in records if (record["head"], record["model"]) == (head, model)]
        assert len(found) == len({record["metric"] for record in found})
        assert {record["metric"] for record in found} == metrics[found[0]["task"]]
    tasks = {record["head"]: record["task"] for record in records}
    assert tasks == {
        "kinds": "classification",
        "masks": "segmentation",
        "boxes": "detection",
        "depth": "depth",
        "gabor": "texture",
    }


def test_evaluate_measures_each_head_with_teacher_and_baseline_on_its_set(records: list[Record]) -> None:
    """The set has no test split, so its val split with three images is taken."""
    expected = {
        (head, model, "truth", "val") for head in TRAINED for model in ("student", f"teacher:{head}", "baseline")
    }
    found = [record for record in records if record["head"] in TRAINED]
    assert measured(found) == expected
    assert {(record["protocol"], record["n"]) for record in found} == {(PROTOCOL, 3)}


def test_evaluate_without_true_labels_compares_student_with_teacher(records: list[Record]) -> None:
    found = [record for record in records if record["head"] == "gabor"]
    assert measured(found) == {("gabor", model, "truth", "val") for model in ("student", "baseline")}
    assert {(record["protocol"], record["n"]) for record in found} == {(AGREEMENT, 3)}


def test_evaluate_scores_a_teacher_as_its_training_did(records: list[Record], artifacts: dict[str, Artifact]) -> None:
    for head in TRAINED:
        scores = {record["metric"]: record["value"] for record in records if record["model"] == f"teacher:{head}"}
        assert scores == Teacher.load(artifacts[f"teacher.{head}"]).scores


def some_of_the_world(world: World, artifacts: Mapping[str, Artifact], **more: Artifact) -> Inputs:
    """Return the step's inputs with three of the teachers, and more sets."""
    names = ("student", "data.truth", "data.pool", "teacher.kinds", "teacher.masks", "teacher.depth")
    sets = {f"data.{name}": made for name, made in more.items()}
    return Inputs({**{name: artifacts[name] for name in names}, **sets}, world.runtime)


def test_evaluate_measures_further_sets_of_the_same_task_and_classes(
    world: World, artifacts: dict[str, Artifact], make_set: MakeSet, tmp_path: Path
) -> None:
    """The set has no depth, and `silent` is not named. A teacher's own set counts once."""
    scenes = {"kind": "scenes", "count": 0, "size": 48}
    more = make_set("more", **scenes, seed=8, test=2, tasks=["classification", "segmentation"])
    silent = make_set("silent", **scenes, seed=9, test=1, tasks=["classification", "depth"])
    inputs = some_of_the_world(world, artifacts, more=more, silent=silent)
    records = measure(inputs, tmp_path / "out", sets=["more", "truth"])
    where = {head: {record["dataset"] for record in records if record["head"] == head} for head in TRAINED}
    assert where == {"kinds": {"truth", "more"}, "masks": {"truth", "more"}, "depth": {"truth"}, "boxes": set()}
    for head in ("kinds", "masks"):
        found = [record for record in records if record["head"] == head and record["dataset"] == "more"]
        assert measured(found) == {
            (head, model, "more", "test") for model in ("student", f"teacher:{head}", "baseline")
        }
        assert {(record["protocol"], record["n"]) for record in found} == {(PROTOCOL, 2)}
    places = [tuple(record[key] for key in ("head", "model", "dataset", "metric")) for record in records]
    assert len(places) == len(set(places))


@pytest.mark.parametrize(("asked", "found"), [("test", ("test", 2)), ("val", ("val", 1))])
def test_evaluate_prefers_the_split_that_is_asked_for(
    asked: str, found: tuple[str, int], make_kinds: MakeSet, make_model: MakeModel, measure_small: Measure
) -> None:
    """The set `away` has only one held-out split, which is taken instead."""
    home = make_kinds("home", {"train/a": [1, 2], "train/b": [3], "val/a": [4], "test/b": [5, 6]})
    away = make_kinds("away", {"val/a": [7], "val/b": [8, 9]})
    model = make_model("a")
    inputs = {"student": model, "data.home": home, "data.away": away, "teacher.kind": model}
    records = measure_small(inputs, splits=asked, sets=["away"])
    assert {(record["dataset"], record["split"], record["n"]) for record in records} == {
        ("home", *found),
        ("away", "val", 3),
    }


def test_evaluate_assigns_scores_to_the_right_models(
    make_kinds: MakeSet, make_model: MakeModel, measure_small: Measure
) -> None:
    """The teacher says a, the student b; a is the more frequent class where the teacher learned."""
    home = make_kinds("home", {"train/a": [1, 2], "train/b": [3], "test/a": [4], "test/b": [5, 6, 7]})
    away = make_kinds("away", {"train/b": [8, 9], "test/a": [10, 11, 12, 13], "test/b": [14]})
    inputs = {"student": make_model("b"), "teacher.kind": make_model("a"), "data.home": home, "data.away": away}
    records = measure_small(inputs, sets=["away"], seed=5)
    assert values(records, "home") == {"student": 0.75, "teacher:kind": 0.25, "baseline": 0.25}
    assert values(records, "away") == {"student": 0.2, "teacher:kind": 0.8, "baseline": 0.8}
    assert {(record["metric"], record["better"], record["seed"]) for record in records} == {("accuracy", "higher", 5)}


def test_evaluate_baseline_does_not_see_held_out_images(
    make_kinds: MakeSet, make_model: MakeModel, measure_small: Measure
) -> None:
    """Two of the three training images of class a are tested on: without them b is the more frequent class."""
    home = make_kinds("home", {"train/a": [1, 2, 3], "train/b": [4, 5], "test/a": [1, 2]})
    model = make_model("a")
    records = measure_small({"student": model, "teacher.kind": model, "data.home": home})
    assert values(records, "home") == {"student": 1.0, "teacher:kind": 1.0, "baseline": 0.0}


def test_evaluate_teacher_from_elsewhere_has_no_baseline(
    make_kinds: MakeSet, make_model: MakeModel, measure_small: Measure
) -> None:
    """Its training labels are unknown; it is measured on the set that is named."""
    home = make_kinds("home", {"train/a": [1], "test/a": [2, 3], "test/b": [4]})
    inputs = {"student": make_model("b"), "teacher.kind": make_model("a", None), "data.home": home}
    records = measure_small(inputs, sets=["home"])
    assert values(records, "home") == {"student": pytest.approx(1 / 3), "teacher:kind": pytest.approx(2 / 3)}


@pytest.mark.parametrize(("answer", "agreement"), [("a", 1.0), ("b", 0.0)])
def test_evaluate_agreement_is_with_the_teachers_labels(
    answer: str, agreement: float, make_set: MakeSet, make_model: MakeModel, measure_small: Measure
) -> None:
    """The teacher says a; so does the best constant answer."""
    home = make_set("home", kind="scenes", count=0, test=2, seed=9, size=48)
    inputs = {"student": make_model(answer), "teacher.kind": make_model("a", None), "data.home": home}
    records = measure_small(inputs)
    assert values(records, "home") == {"student": agreement, "baseline": 1.0}
    assert {(record["n"], record["protocol"]) for record in records} == {(2, AGREEMENT)}


def test_evaluate_set_with_other_classes_has_no_truth_for_a_teacher(
    make_set: MakeSet,
    make_kinds: MakeSet,
    make_network: Callable[..., Network],
    measure_small: Measure,
    tmp_path: Path,
) -> None:
    """`home` has the classes a and b, `pets` has others: agreement on the first set is measured instead."""
    blank = make_set("blank", kind="scenes", count=0, test=1, seed=9, size=48)
    home = make_kinds("home", {"train/a": [1], "test/b": [2, 3]})
    both = saved(make_network({"kind": KINDS, "pets": PETS}), tmp_path / "both", None)
    pets = saved(make_network({"pets": PETS}), tmp_path / "pets", None)
    inputs = {"student": both, "teacher.kind": both, "teacher.pets": pets, "data.blank": blank, "data.home": home}
    records = measure_small(inputs, sets=["home"])
    where = {(record["head"], record["dataset"], record["protocol"], record["n"]) for record in records}
    assert where == {("kind", "home", PROTOCOL, 2), ("pets", "blank", AGREEMENT, 1)}


@pytest.fixture
def ground(noise: Noise, make_set: MakeSet, tmp_path: Path) -> Artifact:
    """Ingest a set of five held-out images, two of them with a mask."""
    for number in range(5):
        for folder, picture in (("images", noise(number)), ("masks", noise(number)[:, :, 0] % 2)):
            (tmp_path / "ground" / folder / "val").mkdir(parents=True, exist_ok=True)
            if folder == "images" or number < 2:
                Image.fromarray(picture).save(tmp_path / "ground" / folder / "val" / f"{number}.png")
    return make_set("ground", kind="masks", path=str(tmp_path / "ground"), classes=GROUND.classes, max_bad=0)


def test_evaluate_does_not_count_images_without_a_label(
    ground: Artifact, make_network: Callable[..., Network], measure_small: Measure, tmp_path: Path
) -> None:
    model = saved(make_network({"masks": GROUND}), tmp_path / "model", None)
    records = measure_small({"student": model, "teacher.masks": model, "data.ground": ground}, sets=["ground"])
    assert len(records) == 4
    assert {(record["n"], record["protocol"]) for record in records} == {(2, PROTOCOL)}


def test_evaluate_leaves_out_a_student_without_the_head(
    artifacts: dict[str, Artifact], world: World, make_model: MakeModel, tmp_path: Path
) -> None:
    """Its weight in the loss was 0. Without true labels there is nothing to measure."""
    names = ("data.truth", "teacher.kinds", "teacher.gabor")
    inputs = {"student": make_model("a"), **{name: artifacts[name] for name in names}}
    records = measure(Inputs(inputs, world.runtime), tmp_path / "out")
    assert measured(records) == {("kinds", model, "truth", "val") for model in ("teacher:kinds", "baseline")}


def test_evaluate_without_held_out_images_measures_nothing(
    artifacts: dict[str, Artifact], world: World, tmp_path: Path
) -> None:
    names = ("student", "data.pool", "teacher.gabor")
    assert measure(Inputs({name: artifacts[name] for name in names}, world.runtime), tmp_path / "out") == []


def test_evaluate_stops_when_asked(world: World, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    stop, told = threading.Event(), []

    def progress(step: str, done: float, line: str) -> None:
        told.append((step, done, line))
        stop.set()

    inputs = some_of_the_world(world, artifacts)
    inputs = dataclasses.replace(inputs, runtime=dataclasses.replace(world.runtime, progress=progress, stop=stop))
    with pytest.raises(Stopped, match=r"Stopped in .*what is done is kept"):
        measure(inputs, tmp_path / "out")
    with pytest.raises(Stopped, match=r"Stopped in evaluate; what is done is kept"):
        measure(inputs, tmp_path / "out")
    assert told == [("evaluate", 0, "kinds on truth/val")], "no teacher is begun after a stop"
    assert not (tmp_path / "out" / "metrics.json").exists(), "half of the numbers would pass for all of them"
