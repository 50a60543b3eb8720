"""Tables of what single steps measured or counted, by the kind of step. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from evaluation.backbone_table import MetricColumn, backbone_tables, records_in
from evaluation.learned_labels import LearnedLabels
from evaluation.measurement import CLEAN
from evaluation.metric_table import ARROWS, ROLES, MetricLine, read_lines
from evaluation.report.backbones import score
from evaluation.report.formatting import DASH, count, percent
from evaluation.report.html import ReportTable
from evaluation.report.run_record import RunRecord, TrainingLog
from ingest.dataset import IngestedSet
from ingest.pool import read_pool
from pipeline.sources._splits import SPLITS
from pipeline.steps.artifact import Artifact, read_json
from pipeline.stores.naming import LABEL_INDEX
from tasks.teacher import Teacher


class MakerLabels(NamedTuple):
    """The labels that a teacher, or a head of the student, made of the pool."""

    maker: str
    images: int
    failed: int
    folder: str


def labels_by_maker(artifact: Artifact) -> Iterator[MakerLabels]:
    """Yield what each maker labelled in a step."""
    entries = artifact.load(LABEL_INDEX, read_json)
    for maker in dict.fromkeys(entry["teacher"] for entry in entries):
        shards = [entry for entry in entries if entry["teacher"] == maker]
        images, failed = (sum(shard[key] for shard in shards) for key in ("rows", "failed"))
        yield MakerLabels(maker, images, failed, str(artifact.external_file(shards[0]["path"]).path.parent))


def metrics_table(lines: Iterable[MetricLine]) -> ReportTable:
    """Return metrics of student, teacher and baseline, one a row."""
    rows = [
        [
            f"{line.target.head} ({line.target.task})",
            line.target.dataset,
            f"{line.metric} {ARROWS[line.better]}",
            *(_number(line.values.get(role)) for role in ROLES),
        ]
        for line in lines
    ]
    return ReportTable(["teacher", "measured on", "metric", *ROLES], rows, range(3, 6))


def feature_table(run: RunRecord) -> ReportTable:
    """Return the spread and effective rank of the stages' features before and after."""
    stages = {name: artifact.counts["features"] for name, artifact in run.of_kind("stage").items()}
    rows = [
        [name, *(f"{features[when][key]:.3g}" for key in ("spread", "rank") for when in ("before", "after"))]
        for name, features in stages.items()
    ]
    return ReportTable(["Stage", "Spread before", "after", "Effective rank before", "after"], rows, range(1, 5))


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def _set(run: RunRecord, artifact: Artifact) -> ReportTable:
    counts, spaces = artifact.counts, IngestedSet(artifact).spaces
    labels = [f"labels.{task}" for task in spaces]
    rows = [
        [split, *(count(counts.get(f"{counted}.{split}", 0)) for counted in ("images", *labels))]
        for split in SPLITS
        if counts.get(f"images.{split}")
    ]
    return ReportTable(["split", "images", *spaces], rows, range(1, len(spaces) + 2))


def _pool(run: RunRecord, artifact: Artifact) -> ReportTable:
    by_set = Counter(read_pool(artifact, ["set"])["set"].to_pylist())
    return ReportTable(["set", "images"], [[name, count(images)] for name, images in by_set.items()], {1})


def _teacher(run: RunRecord, artifact: Artifact) -> ReportTable:
    teacher = Teacher.load(artifact)
    rows = [[name, _number(value), _number(teacher.baseline.get(name))] for name, value in teacher.scores.items()]
    return ReportTable(["metric", "teacher", "baseline"], rows, {1, 2})


def _labels(run: RunRecord, artifact: Artifact) -> ReportTable:
    rows = [[each.maker, count(each.images), count(each.failed)] for each in labels_by_maker(artifact)]
    return ReportTable(["teacher", "images", "failed"], rows, {1, 2})


def _choice(run: RunRecord, artifact: Artifact) -> ReportTable:
    """Return by head how the student compared with what labelled before it, and who labels the next round."""
    student = artifact.manifest["config"]["labeller"]
    rows = [
        [
            head,
            each["metric"] or DASH,
            f"{each['dataset']}/{each['split']}" if each["dataset"] else DASH,
            *(_number(each[key]) for key in ("before", "student")),
            student if each["by_student"] else f"as before: {each['why']}",
        ]
        for head, each in artifact.counts["rounds"].items()
    ]
    return ReportTable(["head", "metric", "measured on", "before", student, "labels by"], rows, {3, 4})


def _student(run: RunRecord, artifact: Artifact) -> ReportTable:
    losses = TrainingLog.of(artifact).losses()
    rows = [
        [head, report["task"], _number(losses[head][-1][1] if head in losses else None), _kept(report)]
        for head, report in run.kept().items()
    ]
    return ReportTable(["head", "task", "last loss", "pseudo labels kept"], rows, {2, 3})


def _kept(report: Mapping[str, Any]) -> str:
    held = sum(report["held"])
    return percent(sum(report["kept"]) / held) if held else DASH


def _stage(run: RunRecord, artifact: Artifact) -> ReportTable:
    return feature_table(run)


def _evaluation(run: RunRecord, artifact: Artifact) -> ReportTable:
    return metrics_table(read_lines(run.metrics())[0])


def _backbone(run: RunRecord, artifact: Artifact) -> ReportTable:
    """Return the measurements of a backbone; no rows for a step that measures none."""
    rows = [
        [board.task, column.protocol, f"{column.labels:,}", _metric(column), score(cell, column, is_best=False)]
        for board in backbone_tables(records_in(artifact, LearnedLabels({})))  # it is not asked what was learned
        for (_, column), cell in board.cells.items()
    ]
    return ReportTable(["task", "protocol", "labels", "metric", "value"], rows, {2, 4})


def _metric(column: MetricColumn) -> str:
    return column.metric if column.corruption == CLEAN else f"{column.metric}, corrupted"


TABLES: dict[str, Callable[[RunRecord, Artifact], ReportTable]] = {
    "data": _set,
    "pool": _pool,
    "stage_pool": _pool,
    "teacher": _teacher,
    "label": _labels,
    "label_choice": _choice,
    "student": _student,
    "stage": _stage,
    "evaluate": _evaluation,
}
"""By kind of step; what another kind leaves is looked through for measurements of a backbone."""


def step_table(run: RunRecord, artifact: Artifact) -> ReportTable | None:
    """Return what a step measured or counted; None if it did neither.

    Args:
        run: its artifacts are the step's inputs, and its own
    """
    table = TABLES.get(artifact.kind, _backbone)(run, artifact)
    return table if table.rows else None
