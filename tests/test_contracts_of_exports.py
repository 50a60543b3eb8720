"""Contracts that every export form must keep, for every task. Forms are found by their files, not listed here."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import tasks
from pipeline.errors import ConfigError
from pipeline.export import LABELS, SUMMARY, BaseWriter, ExportSample, form_names, load_writer, write_export
from pipeline.stores.labels import LabelOrigin, LabelSpace
from tests.spaces import SPACES, name_of, unknown_value, value_of

SIZE = (48, 32)
every_form = pytest.mark.parametrize("form", form_names())
every_space = pytest.mark.parametrize("space", SPACES, ids=name_of)


def samples(space: LabelSpace) -> list[ExportSample]:
    """Return an image with a predicted label, one whose label is unknown everywhere, and one without a label."""
    label, value = tasks.label(space), value_of(space, 0, size=SIZE)
    values = [{"it": value}, {"it": unknown_value(label, value)}, {}]
    return [
        ExportSample(f"{number:016x}", f"image {number}".encode(), "jpg", SIZE, f"{number}.jpg", found)
        for number, found in enumerate(values)
    ]


def held_out(space: LabelSpace) -> list[ExportSample]:
    """Return an image of each split, in folders of their sets, with a predicted and a true label."""
    return [
        dataclasses.replace(sample, values=samples(space)[0].values, origins={"it": origin}, name=name, split=split)
        for sample, origin, name, split in zip(
            samples(space),
            (LabelOrigin("pseudo", "teacher"), LabelOrigin("true", "set")),
            ("set/a.b/0.x.jpg", "set/a.b/1.jpg"),
            ("train", "val"),
            strict=False,
        )
    ]


@every_form
def test_writer_states_which_tasks_it_supports(form: str) -> None:
    writer = load_writer(form)
    assert issubclass(writer, BaseWriter)
    assert set(writer.supported) <= set(tasks.names())
    held = [task for task in tasks.names() if writer.what_is_lost(task) is not None]
    assert held
    assert len(held) == len(tasks.names()) or writer.unsupported_reason


@every_form
@every_space
def test_write_export_writes_supported_tasks_and_refuses_others(form: str, space: LabelSpace, tmp_path: Path) -> None:
    heads, out = {"it": tasks.label(space)}, tmp_path / "out"
    if load_writer(form).what_is_lost(space.task) is None:
        with pytest.raises(ConfigError, match=rf"--to {form} can hold labels for .* the heads are it \({space.task}\)"):
            write_export(form, out, heads, samples(space), {})
        assert not list(tmp_path.iterdir())
        return
    summary = write_export(form, out, heads, samples(space), {"recipe": "r"})
    assert json.loads((out / SUMMARY).read_text("utf-8")) == summary
    assert (summary["form"], summary["images"], summary["images_without_labels"]) == (form, 2, 1)
    about = summary["heads"]["it"]
    assert LabelSpace.from_json(about) == space
    assert about["where"]
    assert about["written"]["images"] in (1, 2)
    data = b"".join(file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file())
    assert b"image 0" in data, "the image's own bytes"
    assert b"image 2" not in data, "an image without a label"


@every_form
@every_space
def test_write_export_writes_names_splits_and_origins(form: str, space: LabelSpace, tmp_path: Path) -> None:
    if load_writer(form).what_is_lost(space.task) is None:
        return
    summary = write_export(form, tmp_path / "out", {"it": tasks.label(space)}, held_out(space), {})
    assert summary["splits"] == {"train": 1, "val": 1}
    with open(tmp_path / "out" / LABELS, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["split"], row["origin"], row["origin_name"]) for row in rows] == [
        ("set/a.b/0.x.jpg", "train", "pseudo", "teacher"),
        ("set/a.b/1.jpg", "val", "true", "set"),
    ]
    assert [row["source"] for row in rows] == ["0.jpg", "1.jpg"]
    assert any("val" in file.name or "val" in str(file.parent) for file in (tmp_path / "out").rglob("*")) or (
        form == "fiftyone"
    ), "a form with splits says so in the names of its files, and FiftyOne in a tag"


@every_form
def test_write_export_leaves_nothing_when_it_fails(form: str, tmp_path: Path) -> None:
    space = next(space for space in SPACES if load_writer(form).what_is_lost(space.task) is not None)

    def broken() -> Iterator[ExportSample]:
        yield from samples(space)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_export(form, tmp_path / "out", {"it": tasks.label(space)}, broken(), {})
    assert not list(tmp_path.iterdir())


@every_form
def test_write_export_writes_an_empty_export(form: str, tmp_path: Path) -> None:
    space = next(space for space in SPACES if load_writer(form).what_is_lost(space.task) is not None)
    assert write_export(form, tmp_path / "out", {"it": tasks.label(space)}, [], {})["images"] == 0
    assert (tmp_path / "out" / SUMMARY).exists()
