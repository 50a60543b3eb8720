"""Labelled images of a stage: how they are drawn, which of them are used, and until when."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from ingest.dataset import IngestedSet
from ingest.true_labels import held_out_keys
from pipeline.data.dataset import ImageDataset
from pipeline.data.sampling import random_order
from pipeline.errors import ConfigError
from pipeline.recipe.stage import LabelledConfig
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from selfsup.stages import step as stage_step
from selfsup.stages.labelled_sampler import ImageClasses, class_sampler
from selfsup.stages.objective import RANK, SPREAD
from selfsup.stages.stream import ImageViews, ViewStream
from selfsup.stages.training import StageJob
from tests.ingest.photos import picture
from tests.selfsup.sandbox import SEED, TWO, StageSandbox, log
from tests.steps import make_step

UNKNOWN = -1


def labels(count: int = 10, each: int = 8) -> NDArray[np.int64]:
    return np.tile(np.arange(count), each)


NAMES = tuple("abcdefghij")


def known(of: NDArray[np.int64], names: Sequence[str] = NAMES) -> ImageClasses:
    return ImageClasses([f"{number:016x}" for number in range(len(of))], names, of)


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_class_sampler_draws_every_class_once_a_pass(classes: int) -> None:
    steps, orders = 10 // classes, []
    for seed in range(3):
        sampler = class_sampler(LabelledConfig(classes=classes, images=3), known(labels()), seed)
        for first in range(0, 4 * steps, steps):
            order = [label for number in range(first, first + steps) for _, label in sampler.draw(number)[:classes]]
            assert sorted(order) == list(range(10))
            orders.append(tuple(order))
    assert len(set(orders)) == len(orders) == 12


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_class_sampler_draws_images_with_classes_interleaved(classes: int) -> None:
    sampler = class_sampler(LabelledConfig(classes=classes, images=3), known(labels()), seed=0)
    for number in range(20):
        drawn = sampler.draw(number)
        images, order = [index for index, _ in drawn], [label for _, label in drawn]
        assert len(set(order[:classes])) == classes
        for place in range(classes):
            assert order[place::classes] == [order[place]] * 3
            assert len(set(images[place::classes])) == 3
            assert {labels()[index] for index in images[place::classes]} == {order[place]}
        assert sampler.draw(number) == drawn


def test_class_sampler_draws_every_labelled_image() -> None:
    sampler = class_sampler(LabelledConfig(classes=5, images=3), known(labels()), seed=0)
    assert {index for number in range(50) for index, _ in sampler.draw(number)} == set(range(80))


def test_class_sampler_ignores_positions_of_images() -> None:
    """In other shards the same images have other positions."""
    one = known(labels())
    order = np.random.default_rng(0).permutation(len(one.keys))
    other = ImageClasses([one.keys[place] for place in order], NAMES, one.numbers[order])
    config = LabelledConfig(classes=5, images=3, per_class=6)
    drawn = [
        [[each.keys[index] for index, _ in class_sampler(config, each, 4).draw(number)] for number in range(6)]
        for each in (one, other)
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"per_class": 3}, r"per_class \(3\) is less than images \(4\), those of a class in a step: set images to 3"),
        ({"method": "supcon", "smoothing": 0.1}, r"smoothing \(0.1\) is for method suncet; supcon has none"),
    ],
)
def test_labelled_config_refuses_what_no_step_can_draw(labels: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LabelledConfig.model_validate(labels)


def test_class_sampler_per_class_is_a_subset_of_larger_per_class() -> None:
    few, more = (
        class_sampler(LabelledConfig(per_class=number, images=2), known(labels()), seed=1) for number in (2, 6)
    )
    used = [{int(index) for members in each.members for index in members} for each in (few, more)]
    assert len(used[0]) == 20
    assert used[0] < used[1]
    drawn = {index for number in range(50) for index, _ in few.draw(number)}
    assert drawn <= used[0]


def test_class_sampler_refuses_missing_labels() -> None:
    rare = np.append(labels(), 10)
    with pytest.raises(
        ConfigError, match=r"of 81 images 1 are labelled as 'k', and 4 of each .*images 4\): label more\."
    ):
        class_sampler(LabelledConfig(), known(rare, (*NAMES, "k")), seed=0)
    with pytest.raises(ConfigError, match=r"classes is 4, which does not divide the 10 .*: 2 or 5 or 10 would"):
        class_sampler(LabelledConfig(classes=4), known(labels()), seed=0)
    with pytest.raises(ConfigError, match=r"classes is 20, which does not divide the 10"):
        class_sampler(LabelledConfig(classes=20), known(labels()), seed=0)


def test_run_stage_logs_suncet_until_labels_end(sandbox: StageSandbox) -> None:
    lines = log(sandbox.run(labels={**TWO, "until": 0.5}, data=["kinds"]))
    assert ["suncet" in line["losses"] for line in lines] == [True, True, False, False]
    assert {SPREAD, RANK} <= lines[0]["losses"].keys()


Read = Callable[..., Artifact]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Ingests a set of pictures: (class of each, 0, 1 or UNKNOWN; number of the first) -> its artifact."""

    def cell(number: int) -> bytes:
        picture(number, 40, 40).save(file := io.BytesIO(), "PNG")
        return file.getvalue()

    def make(classes: Sequence[int], first: int = 100) -> Artifact:
        path = tmp_path / "".join("ab-"[each] for each in classes) / "train.parquet"
        path.parent.mkdir()
        table = pa.table({"image": [cell(first + place) for place in range(len(classes))], "label": classes})
        pq.write_table(table.replace_schema_metadata({"classes": '["a", "b"]'}), path)
        source = {"kind": "parquet", "path": str(path)}
        step = make_step(
            "data.pictures", "ingest.ingest:ingest", {"name": "pictures", "source": source, "shard_images": 4}
        )
        root = Root.of(path.parent / "root")
        return Workspace(root).make(step, Inputs({}, Runtime(root, "cpu", "32", 1)))

    return make


def test_run_stage_ignores_labels_beyond_per_class(sandbox: StageSandbox, read: Read) -> None:
    """They may be unknown or wrong; but if two of the used ones are exchanged, the losses change."""

    def learned(classes: Sequence[int]) -> tuple[list[float], str]:
        sandbox.sets["data.pictures"] = read(classes)
        made = sandbox.run(data=["pictures"], labels={**TWO, "per_class": 2})
        return [line["loss"] for line in log(made)], made.digest

    true = [number % 2 for number in range(12)]
    wanted = learned(true)
    order = random_order(sandbox.images(data=["pictures"]).keys(), SEED).tolist()
    allowed = [number for each in (0, 1) for number in [one for one in order if true[one] == each][:2]]
    after = order[max(order.index(number) for number in allowed) + 1 :]
    assert len(after) > 2
    assert learned([each if number in allowed else UNKNOWN for number, each in enumerate(true)]) == wanted
    assert learned([1 - each if number in after else each for number, each in enumerate(true)]) == wanted
    exchanged = (allowed[0], allowed[-1])
    losses, _ = learned([1 - each if number in exchanged else each for number, each in enumerate(true)])
    assert losses != wanted[0]


def stream_of(sandbox: StageSandbox, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> ViewStream:
    """Return the stream that a stage of these settings would train on."""
    kept: list[ViewStream] = []

    def train(job: StageJob, *_: Any) -> dict[str, Any]:
        kept.append(job.stream)
        return {"steps": 0}

    monkeypatch.setattr(stage_step, "train", train)
    sandbox.run(**settings)
    return kept[0]


def shown(stream: ViewStream, step: int) -> list[ImageViews]:
    return [draw() for draw in stream.sample_makers(step)]


def test_view_stream_shows_labelled_images_as_unlabelled_too(
    sandbox: StageSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven steps are a pass over all 14 images: two in each, beside four labelled ones."""
    stream = stream_of(sandbox, monkeypatch, data=["kinds"], steps=7, labels={**TWO, "per_class": 2})
    seen = [each for step in range(7) for each in shown(stream, step)]
    plain = [each.key for each in seen if each.label is None]
    labelled = {each.key for each in seen if each.label is not None}
    assert sorted(plain) == sorted(stream.dataset.keys())
    assert len(plain) == 14
    assert len(labelled) == 4
    assert labelled < set(plain)
    assert not labelled & held_out_keys(IngestedSet(sandbox.sets["data.kinds"]))


def test_view_stream_loads_no_labelled_image_after_labels_end(
    sandbox: StageSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = stream_of(sandbox, monkeypatch, data=["kinds"], steps=8, labels={**TWO, "until": 0.5})
    read, really_read = list[int](), ImageDataset.read

    def noting(dataset: ImageDataset, index: int) -> tuple[str, bytes]:
        read.append(index)
        return really_read(dataset, index)

    monkeypatch.setattr(ImageDataset, "read", noting)
    for step in range(8):
        read.clear()
        found = shown(stream, step)
        labelled = [each for each in found if each.label is not None]
        assert (len(read), len(labelled)) == ((6, 4) if step < 4 else (4, 0))
        assert sum(len(each.views) for each in found) == 8


def test_view_stream_without_labels_shows_no_label_and_no_held_out_image(
    sandbox: StageSandbox, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twelve labelled images two are held out in another set; the others are seen in four steps."""
    sandbox.sets["data.pictures"] = read([0, 1] * 6, first=0)
    held_out = held_out_keys(IngestedSet(sandbox.sets["data.kinds"]))
    stream = stream_of(sandbox, monkeypatch, data=["pictures"])
    seen = [each for step in range(4) for each in shown(stream, step)]
    keys = {each.key for each in seen}
    in_set = {key for shard in IngestedSet(sandbox.sets["data.pictures"]).images("train").shards for key in shard.keys}
    assert (len(in_set), len(in_set & held_out)) == (12, 2)
    assert keys == in_set - held_out
    assert {each.label for each in seen} == {None}
    [batch] = stream.assemble(seen, 0).split(1)
    assert (batch.labelled, batch.classes) == (None, None)
