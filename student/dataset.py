"""Training data of the student: its heads, and every pool image with the true or pseudo label of each head."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from typing import Any

import tasks
from ingest.dataset import IngestedSet
from ingest.label_precedence import LabelPrecedence
from ingest.pool import lapsed_rejections, pool_shards, rejected_rows
from ingest.rejections import REJECTED_LABELS
from ingest.true_labels import drop_unlabelled
from pipeline.data.dataset import DatasetShard, ImageDataset
from pipeline.errors import ConfigError, DataError
from pipeline.recipe.student import StudentConfig
from pipeline.steps.artifact import Inputs
from pipeline.storage.root import in_parallel
from pipeline.stores.labels import LabelSpace
from pipeline.stores.naming import learned_labels
from student.disagreement import ComparedLabels
from student.head import StudentHead
from tasks.teacher import APPLICABILITY_FILE, Teacher


def heads_of(config: StudentConfig, inputs: Inputs) -> dict[str, StudentHead]:
    """Return the heads by teacher, one for each teacher whose loss weight is not 0.

    Raises ConfigError if one of `config.applicability` has none.
    """
    labelling = inputs[learned_labels(inputs.artifacts)].manifest["inputs"]
    heads = {}
    for name, artifact in inputs.of_kind("teacher").items():
        if config.loss_weights.get(name) == 0:
            continue
        teacher = Teacher.load(artifact)
        threshold = threshold_for(config, name, teacher.space)
        least = config.applicability.get(name, 0.0)
        if least and not artifact.has(APPLICABILITY_FILE):
            why = artifact.counts["applicability"]["why"]
            raise ConfigError(f"student.applicability names {name!r}, whose labels have none: {why}.")
        is_live = f"teacher.{name}" not in labelling
        heads[name] = StudentHead(name, teacher.space, teacher.data, teacher.schedule, threshold, least, is_live)
    return heads


def threshold_for(config: StudentConfig, teacher: str, space: LabelSpace) -> float:
    """Return the threshold of the teacher, of its task, or the task's default (0.5 for objects, as in MuST)."""
    thresholds = config.thresholds
    return thresholds.get(teacher, thresholds.get(space.task, tasks.label(space).default_threshold))


def student_dataset(config: StudentConfig, heads: Mapping[str, StudentHead], inputs: Inputs) -> ImageDataset:
    """Return the pool's images joined with their labels; an epoch draws each once.

    Images without a label are left out, unless a live teacher says something of all.
    """
    shards = list(student_shards(config, heads, inputs))
    has_live = any(head.is_live for head in heads.values())
    return ImageDataset(shards if has_live else in_parallel(drop_unlabelled, shards))


def student_shards(config: StudentConfig, heads: Mapping[str, StudentHead], inputs: Inputs) -> Iterator[DatasetShard]:
    """Yield the shards of the pool with the label sources of each head, those that win first.

    Images without a label are still in them. Labels that were rejected by hand are not used, true ones are. Raises
    DataError if a teacher has not labelled a shard.
    """
    sets = {name: IngestedSet(artifact) for name, artifact in inputs.of_kind("data").items()}
    step = learned_labels(inputs.artifacts)
    precedence = LabelPrecedence(config.labels, config.truths, sets, inputs.artifacts, step)
    compared = ComparedLabels(config, heads, inputs)
    stored = [head for head in heads.values() if not head.is_live]
    for name, shard, rows in pool_shards(inputs["pool"], inputs.of_kind("data")):
        label_sources = {}
        for head in stored:
            sources = precedence.sources(head, name, shard)
            if precedence.expects_labels(head.teacher, name) and all(ranked.truth for ranked in sources):
                raise DataError(
                    f"No labels by teacher {head.teacher!r} for {name}/{shard.name}: `must run` with --force label "
                    "makes them again."
                )
            if sources:
                label_sources[head.teacher] = tuple(
                    ranked.source if ranked.truth else compared.add_to(ranked.source, head.teacher, name, shard)
                    for ranked in sources
                )
        if label_sources or len(stored) < len(heads):
            yield DatasetShard(shard, rows, label_sources, name, sets[name].channels)


def count_rejected(inputs: Inputs) -> dict[str, Any]:
    """Count, for the manifest, the pool's rejected pseudo labels by teacher; {} if none were rejected in this root.

    `unmatched_rejections` are of images outside the pool, or of another version of their teacher; of these,
    `lapsed_rejections` has the number by teacher.
    """
    if REJECTED_LABELS not in inputs.artifacts:
        return {}
    counts: collections.Counter[str] = collections.Counter()
    for (_, _, teacher), rows in rejected_rows(inputs.artifacts).items():
        counts[teacher] += len(rows)
    unmatched = inputs[REJECTED_LABELS].counts["rejections"] - counts.total()
    lapsed = lapsed_rejections(inputs.artifacts)
    optional = {"unmatched_rejections": unmatched, "lapsed_rejections": lapsed}
    return {"rejected": dict(counts), **{name: each for name, each in optional.items() if each}}
