"""The report as a reader gets it: complete, escaped, self-contained, with every number, and with parts missing."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.report.formatting import DASH
from evaluation.report.report import write_report
from evaluation.report.results import MAX_CLASSES, warnings
from evaluation.report.run_record import RunRecord
from pipeline.steps.artifact import Artifact, read_json, write_json
from pipeline.storage.path import StoragePath
from tests.disk import folder_of, resealed

if TYPE_CHECKING:
    from tests.conftest import World

HOSTILE = "<script>alert(\"1\")</script> & 'x' \u202egpj.<img src=x onerror=alert(1)>"
FAILED = "could not be shown"
VOID = {"br", "hr", "img", "meta"}
"""Tags without an end."""


@pytest.fixture(scope="module")
def artifacts(world: World) -> dict[str, Artifact]:
    """Return the tiny world's artifacts with a student and its metrics."""
    from pipeline.steps.artifact import Inputs  # noqa: PLC0415 - as the world itself, only when it is needed

    made = dict(world.artifacts)
    for name in ("student", "evaluate"):
        step = world.steps[name]
        inputs = {other: made[other] for other in step.inputs}
        fingerprint = step.fingerprint(inputs)
        made[name] = world.workspace.find(step, fingerprint) or world.workspace.make(
            step, Inputs(inputs, world.runtime)
        )
    return made


@pytest.fixture
def folder(tmp_path: Path, artifacts: dict[str, Artifact]) -> Path:
    """Return a run's folder: everything was made in it but the first step, which was reused."""
    (tmp_path / "recipe.yaml").write_text("name: world\nseed: 0\n", encoding="utf-8")
    events = [
        {"time": 1e9 + 10 * number, "event": "made" if number else "reused", "step": step}
        for number, step in enumerate(artifacts)
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    write_json(
        tmp_path / "plan.json", [{"step": step, "action": "run", "why": "never made here"} for step in artifacts]
    )
    return tmp_path


@pytest.fixture
def page(folder: Path, artifacts: dict[str, Artifact]) -> str:
    """Return the report of the tiny world."""
    return report(folder, artifacts)


def report(folder: Path, artifacts: Mapping[str, Artifact]) -> str:
    write_report(StoragePath.of(str(folder)), artifacts)
    return (folder / "report.html").read_text(encoding="utf-8")


def with_counts(artifact: Artifact, **counts: Any) -> Artifact:
    return dataclasses.replace(artifact, manifest={**artifact.manifest, "counts": {**artifact.counts, **counts}})


def copied(artifact: Artifact, folder: Path) -> Artifact:
    """Return the artifact in another folder, with its tables and JSON files copied there, for a test to change."""
    folder.mkdir()
    for path in folder_of(artifact).iterdir():
        if path.suffix in (".json", ".parquet"):
            (folder / path.name).write_bytes(path.read_bytes())
        else:
            (folder / path.name).symlink_to(path)
    return dataclasses.replace(artifact, path=os.path.relpath(folder, artifact.root.path))


class Reader(HTMLParser):
    """A parser that checks that tags balance, and collects ids, links, sources and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> Iterator[str]:
        return (value for _, attribute, value in self.attributes if attribute == name)


def test_write_report_shows_every_section_in_balanced_html(page: str) -> None:
    read = Reader(page)
    assert not read.wrong
    assert not read.open
    assert page.startswith("<!DOCTYPE html>")
    assert FAILED not in read.text
    ids = list(read.values("id"))
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in read.values("href")} == set(ids)


def test_write_report_makes_a_page_that_needs_no_network(page: str) -> None:
    read = Reader(page)
    assert not re.search(r"https?:", page)
    assert all(source.startswith("data:image/jpeg;base64,") for source in read.values("src"))
    assert all(link.startswith("#") for link in read.values("href"))
    assert not re.search(r"url\(|@import", page)
    assert "script" not in {tag for tag, _, _ in read.attributes}
    assert len(page) < 3_000_000


def test_results_have_every_metric_of_every_model(page: str, artifacts: dict[str, Artifact]) -> None:
    records = artifacts["evaluate"].load("metrics.json", read_json)
    assert {record["model"].partition(":")[0] for record in records} == {"student", "teacher", "baseline"}
    assert {record["head"] for record in records} == {"kinds", "masks", "boxes", "depth", "gabor"}
    rows = re.findall(r'<tr><td title="(?:higher|lower) is better">(.*?)</tr>', page)
    shown = [re.findall(r">([^<]+)</span></td>", row)[:3] for row in rows]
    metrics = [re.split("<|\u00a0", row)[1] for row in rows]
    expected: dict[tuple[str, str, str], dict[str, str]] = {}
    for record in records:
        line = expected.setdefault((record["head"], record["dataset"], record["metric"]), {})
        line[record["model"].partition(":")[0]] = f"{record['value']:.3f}"
    assert metrics == [metric for _, _, metric in expected]
    roles = ("student", "teacher", "baseline")
    assert shown == [[line.get(role, DASH) for role in roles] for line in expected.values()]
    text = Reader(page).text
    assert all(
        f"{record['task']} on {record['dataset']}/{record['split']}, {record['n']} image" in text for record in records
    )


def test_results_show_metrics_by_class(folder: Path, artifacts: dict[str, Artifact]) -> None:
    metrics = artifacts["evaluate"].load("metrics.json", read_json)
    by_class = {"masks": [("sky", 30, 0.5), ("road", 1200, 0.25)], "boxes": [("car", 3, 0.125)]}
    for record in metrics:
        found = by_class.get(record["head"], []) if record["metric"] in ("miou", "ap") else []
        record["classes"] = [{"class": name, "support": n, "value": value} for name, n, value in found]
    write_json(folder / "metrics.json", metrics)
    part = report(folder, artifacts).partition("By class</h3>")[2].partition("</section>")[0]
    assert re.findall(r"<summary>(\w+)", part) == ["masks"], "a set with one class has no table"
    rows = [re.findall(r"<td[^>]*>([^<]*)", row) for row in re.findall("<tr>(.*?)</tr>", part, re.DOTALL)[1:]]
    assert rows == [["road", "1,200", "0.250", "0.250"], ["sky", "30", "0.500", "0.500"]]


def test_results_show_the_weakest_of_very_many_classes(folder: Path, artifacts: dict[str, Artifact]) -> None:
    [record] = [
        each
        for each in artifacts["evaluate"].load("metrics.json", read_json)
        if (each["model"], each["metric"]) == ("student", "miou")
    ]
    many = [{"class": f"class {number}", "support": 1, "value": number / 3000} for number in range(3000)]
    write_json(folder / "metrics.json", [{**record, "classes": many}])
    part = report(folder, artifacts).partition("By class</h3>")[2].partition("</section>")[0]
    assert f"the {MAX_CLASSES} weakest of 3,000 classes" in Reader(part).text
    assert part.count("<tr>") == MAX_CLASSES + 1


def test_results_list_measurements_of_other_models(folder: Path, artifacts: dict[str, Artifact]) -> None:
    metrics = artifacts["evaluate"].load("metrics.json", read_json)
    probes = [{**metrics[0], "model": f"probe {number}", "value": 0.1234 + number} for number in range(3)]
    write_json(folder / "metrics.json", [*metrics, *probes])
    text = Reader(report(folder, artifacts)).text
    assert all(f"probe {number}" in text and f"{0.1234 + number:.3f}" in text for number in range(3))


def test_learned_labels_and_held_out_show_pictures(page: str, artifacts: dict[str, Artifact]) -> None:
    pool, _, rest = page.partition('id="labels-learned-from"')[2].partition('id="held-out-images"')
    held_out = rest.partition("</section>")[0]
    assert pool.count("<img") >= 3 * 6, "an image and five labels a line"
    assert "true label" in pool
    assert "pseudo label" in pool
    strips = held_out.split('<div class="strip"')[1:]
    measured = {record["head"] for record in artifacts["evaluate"].load("metrics.json", read_json)}
    assert len(strips) >= len(measured)
    titles = [
        [title.partition(":")[0] for title in re.findall(r'<img[^>]* title="([^"]+)"', strip)] for strip in strips
    ]
    assert {tuple(found[1:]) for found in titles} == {("truth", "teacher", "student"), ("teacher", "student")}


def test_curves_draw_losses_of_student_and_teachers(page: str) -> None:
    charts = re.findall(r'aria-label="([^"]+): loss by step"', page)
    heads = ["kinds", "masks", "boxes", "depth"]
    assert charts == ["weighted total", *heads, "gabor", *heads]
    assert "it was not kept: gabor." in Reader(page).text


def test_write_report_shows_hostile_names_as_text(folder: Path, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    data = copied(artifacts["data.truth"], tmp_path / "data")
    listed = pa.Table.from_pylist([{"source": HOSTILE, "split": "train", "reason": HOSTILE}])
    for name in ("quarantine", "duplicates", "notes"):
        pq.write_table(listed, folder_of(data) / f"{name}.parquet")
    student = copied(artifacts["student"], tmp_path / "student")
    kept = read_json(folder_of(student) / "kept.json")
    kept["masks"] |= {"classes": [HOSTILE] * len(kept["masks"]["classes"]), "warning": HOSTILE, "threshold": 0.5}
    write_json(folder_of(student) / "kept.json", kept)
    (folder / "recipe.yaml").write_text(json.dumps({"name": HOSTILE}), encoding="utf-8")
    changed = {
        **artifacts,
        "data.truth": with_counts(resealed(data), quarantined=1, duplicates=1, notes=1),
        "student": with_counts(resealed(student), warnings=[HOSTILE]),
    }
    page = report(folder, {**changed, "evaluate": artifacts["evaluate"]})
    read = Reader(page)
    assert not read.wrong
    assert FAILED not in read.text
    assert "<script" not in page
    assert not {name for _, name, _ in read.attributes if name.startswith("on")}
    assert read.text.count("<script>alert") >= 6
    assert f"<bdi><code>{page.partition('<bdi><code>')[2].partition('<')[0]}</code></bdi>" in page


def test_head_has_every_warning(folder: Path, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    label = copied(artifacts["label"], tmp_path / "label")
    entries = read_json(folder_of(label) / "labels.json")
    entries[0]["failed"] = 3
    write_json(folder_of(label) / "labels.json", entries)
    data = copied(artifacts["data.truth"], tmp_path / "data")
    listed = pa.Table.from_pylist([{"source": "a.jpg", "split": "train", "reason": "cut short"}] * 2)
    pq.write_table(listed, folder_of(data) / "quarantine.parquet")
    metrics = artifacts["evaluate"].load("metrics.json", read_json)
    worse = {"teacher:depth": 0.1, "student": 0.2, "baseline": 0.3}
    metrics = [{**r, "value": worse[r["model"]]} if r["metric"] == "delta_1.25" else r for r in metrics]
    write_json(folder / "metrics.json", metrics)
    changed = {
        **artifacts,
        "label": resealed(label),
        "data.truth": with_counts(resealed(data), quarantined=2),
        "student": with_counts(artifacts["student"], warnings=["boxes: the threshold keeps nothing"]),
        "pool": with_counts(artifacts["pool"], left_out={"held out in truth": 4, "already in the pool from pool": 9}),
    }
    page = report(folder, changed)
    assert FAILED not in page
    head = Reader(page.partition("<main>")[0]).text
    for expected in (
        "Teacher depth is no better than the trivial baseline on truth/val: delta_1.25 0.100 against 0.300",
        "The student is no better than the trivial baseline at depth on truth/val: delta_1.25 0.200 against 0.300",
        "boxes: the threshold keeps nothing",
        "2 of 14 files of the set truth can't be used and were left out. First: a.jpg: cut short",
        "4 images were kept out of the pool: the same bytes are held out in truth",
        f"3 images of {entries[0]['set']} have no label by {entries[0]['teacher']}",
    ):
        assert expected in head


def test_warnings_name_the_teachers_of_a_set_that_they_do_not_know_once(
    folder: Path, artifacts: dict[str, Artifact]
) -> None:
    shares = {
        "kinds": {"pool": 0.93, "truth": 0.04},
        "masks": {"pool": 1.0, "truth": 0.51},
        "boxes": {"pool": 0.98},
        "depth": {"pool": 0.5},
    }
    label = with_counts(artifacts["label"], inapplicable=shares)
    found = map(str, warnings(RunRecord(StoragePath.of(str(folder)), {**artifacts, "label": label})))
    assert [sentence.partition(" (applicability below 0.05): ")[0] for sentence in found if "unlike" in sentence] == [
        "93% to 100% of the images of the set pool are unlike those known to teachers kinds, masks, boxes",
        "51% of the images of the set truth are unlike those known to teacher masks",
    ]


def test_kept_labels_show_the_most_frequent_classes_and_count_the_rest(
    folder: Path, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    student = copied(artifacts["student"], tmp_path / "student")
    kept = read_json(folder_of(student) / "kept.json")
    held = [number if number < 900 else 0 for number in range(1000)]
    names = [f"class-{number}-" for number in range(1000)]
    kept["kinds"] |= {"classes": names, "held": held, "kept": [n // 2 for n in held], "threshold": 0.3, "images": 5}
    write_json(folder_of(student) / "kept.json", kept)
    text = Reader(report(folder, {**artifacts, "student": resealed(student)})).text
    shown = [number for number in range(1000) if f"class-{number}-" in text]
    assert shown == list(range(880, 900))
    assert "The 20 most frequent of 1,000 classes; 879 more hold" in text
    assert f"{sum(range(880)):,} images" in text
    assert "101 classes of 1,000 never named" in text


def test_steps_tell_what_ran_from_what_was_reused(page: str, artifacts: dict[str, Artifact]) -> None:
    rows = page.partition('id="steps"')[2].partition("</section>")[0].split("<tr>")[2:]
    assert len(rows) == len(artifacts)
    assert "reused" in rows[0]
    assert all(">ran<" in row for row in rows[1:])
    student = next(row for row in rows if ">student<" in row)
    assert "2 optimiser steps" in student
    assert "of the time waiting for data" in student
    assert "labels/s" in next(row for row in rows if ">label<" in row)


def test_steps_tell_the_rate_of_labelling_by_workers(folder: Path, artifacts: dict[str, Artifact]) -> None:
    workers = with_counts(artifacts["label"], worker_seconds=artifacts["label"].counts["labelled_now"] / 2)
    teachers = len(workers.counts["choices"])
    expected = f"2.0 images/s and {2 * teachers} labels/s per worker, by {teachers} teachers"
    assert expected in report(folder, {**artifacts, "label": workers})


def test_steps_tell_where_memory_ran_out(folder: Path, artifacts: dict[str, Artifact]) -> None:
    cuts = [{"step": 1, "pieces": 2, "images": 16}, {"step": 1207, "pieces": 4, "images": 8}]
    for more, whose in (({}, "batches"), ({"processes": 2}, "each process's part of a batch")):
        student = with_counts(artifacts["student"], out_of_memory=cuts, **more)
        text = Reader(report(folder, {**artifacts, "student": student})).text
        assert f"out of memory at step 1 (from there on {whose} in 2 pieces)" in text
        assert f"out of memory at step 1,207 (from there on {whose} in 4 pieces)" in text
        assert ("2 processes" in text) == bool(more)


def test_steps_tell_the_training_time_of_all_attempts(folder: Path, artifacts: dict[str, Artifact]) -> None:
    words = "of training, earlier attempts included"
    assert words not in Reader(report(folder, artifacts)).text
    student = with_counts(artifacts["student"], training_seconds=510.2, earlier_seconds=400.0)
    assert f"8 min 30 s {words}" in Reader(report(folder, {**artifacts, "student": student})).text


def test_warnings_name_collapsed_features(folder: Path, artifacts: dict[str, Artifact]) -> None:
    features = {"before": {"spread": 0.19, "rank": 206.5}, "after": {"spread": 0.756, "rank": 10.24}}
    for collapsed in (False, True):
        stage = with_counts(artifacts["student"], features={**features, "collapsed": collapsed})
        for step in ("stage.shop", "compare.which.mocov2.scratch.resnet18.share1.steps500.seed0"):
            text = Reader(report(folder, {**artifacts, step: stage})).text
            words = (
                f"The features of {step} have collapsed: their spread is 0.756, where 1 would be even, and was 0.190"
            )
            assert (words in text) == collapsed
            assert ("their effective rank is 10.2, and was 206.5." in text) == collapsed


@pytest.mark.parametrize(
    "kept",
    [(), ("evaluate",), ("data.truth", "pool"), ("teacher.gabor", "label"), ("data.truth", "teacher.masks", "student")],
)
def test_write_report_works_for_a_run_of_fewer_steps(
    kept: tuple[str, ...], tmp_path: Path, artifacts: dict[str, Artifact]
) -> None:
    some = {name: artifact for name, artifact in artifacts.items() if name in kept}
    if "student" in kept:
        student = artifacts["student"]
        files = {name: facts for name, facts in student.manifest["files"].items() if name != "kept.json"}
        some["student"] = dataclasses.replace(student, manifest={**student.manifest, "files": files})
    folder = tmp_path / "empty"
    folder.mkdir()
    read = Reader(report(folder, some))
    assert not read.wrong
    assert FAILED not in read.text


def test_write_report_shows_the_error_of_a_section_and_all_other_sections(
    folder: Path, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    label = copied(artifacts["label"], tmp_path / "label")
    (folder_of(label) / "labels.json").write_text("[", encoding="utf-8")
    text = Reader(report(folder, {**artifacts, "label": label})).text
    assert "This part could not be shown: DataError:" in text
    assert "labels.json" in text
    assert "optimiser step" in text
    assert "Every model on the same held-out images" in text


def test_write_report_makes_the_same_page_of_the_same_run(
    page: str, folder: Path, artifacts: dict[str, Artifact]
) -> None:
    assert report(folder, artifacts) == page
