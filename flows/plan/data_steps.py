"""Steps that read the sets, and copy what was rejected. No torch.

Rejections are copied first, so that rejecting more while a run is on its way changes nothing about that run.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from flows.plan.resolve import ResolvedRecipe
from ingest.ingest import INCREMENTAL_KEYS
from ingest.rejections import REJECTED_IMAGES, REJECTED_LABELS, rejections_config
from pipeline.steps.artifact import Step, StepKind
from pipeline.steps.config_hash import hash_json
from pipeline.stores.rejections import rejected_images, rejected_labels, rejected_teachers

IMAGES_COPY = StepKind("rejected_images", "ingest.rejections:copy_images", early=True)
LABELS_COPY = StepKind("rejected_labels", "ingest.rejections:copy_labels", early=True)
DATA = StepKind("data", "ingest.ingest:ingest", version=5, early=True, incremental_keys=INCREMENTAL_KEYS)


def plan_steps(resolved: ResolvedRecipe) -> Iterator[Step]:
    """Yield the copies of what was rejected, if anything was, and a step for each set."""
    images = rejected_images(resolved.rejects)
    if len(images):
        yield Step(REJECTED_IMAGES, IMAGES_COPY, ("rejected",), {"rejected": rejections_config(images)})
    labels = learned_rejections(resolved)
    if len(labels):
        rejected = {"rejected": rejections_config(labels), "teachers": rejected_teachers(labels)}
        yield Step(REJECTED_LABELS, LABELS_COPY, ("rejected",), rejected)
    for name, source in resolved.sources.items():
        stamp = source.file_stamps()
        config = {
            "name": name,
            "source": resolved.recipe.data[name].model_dump(mode="json"),
            "shard_images": resolved.recipe.shard_images,
            "files": {"count": len(stamp), "stamp": hash_json(stamp)[:16]},
        }
        yield Step(f"data.{name}", DATA, ("data", name), config)


def learned_rejections(resolved: ResolvedRecipe) -> pa.Table:
    """Return the rejected labels that the student would otherwise learn from."""
    recipe, student = resolved.recipe, resolved.recipe.student
    pseudo = [] if student.labels == "true_only" else recipe.teachers
    return rejected_labels(resolved.rejects, [name for name in pseudo if student.loss_weights.get(name) != 0])
