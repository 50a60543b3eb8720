"""Sample pictures of single steps: what they read, labelled or learned from. No torch, as nothing predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import tasks
from evaluation.report.figures import Picture
from evaluation.report.run_record import RunRecord
from evaluation.report.samples import RunSamples, SampleHead, StoredImage, pool_images, pool_strips
from pipeline.sources._splits import SPLITS
from pipeline.steps.artifact import Artifact, of_kind, read_json
from pipeline.storage.root import StoredFile
from pipeline.stores.labels import Label, open_labels
from pipeline.stores.naming import LABEL_INDEX
from tasks.drawing import thumbnail
from tasks.teacher import Teacher

MAX_PICTURES = 8
"""Of a step: few, as they are kept in a database."""
Strips = Iterator[list[Picture]]


def step_strips(run: RunRecord, artifact: Artifact) -> list[list[Picture]]:
    """Return strips of pictures, each an image and its labels; none for a kind of step that has none to show.

    Args:
        run: its artifacts are the step's inputs, and its own
    """
    build = STRIPS.get(artifact.kind)
    strips: list[list[Picture]] = []
    for strip in build(RunSamples(run), artifact) if build else ():
        strips.append(strip)
        if (len(strips) + 1) * len(strip) > MAX_PICTURES:
            break
    return strips


def _set_strips(samples: RunSamples, artifact: Artifact) -> Strips:
    """Yield images of a set with all its true labels."""
    name = artifact.section[-1]
    heads = [_true_head(name, tasks.label(space)) for space in samples.sets[name].spaces.values()]
    for image in _set_images(samples, name):
        yield _true_strip(samples, image, heads)


def _teacher_strips(samples: RunSamples, artifact: Artifact) -> Strips:
    """Yield images of the teacher's own set with the labels that it learned; none if it has no such set."""
    teacher = Teacher.load(artifact)
    if teacher.data in samples.sets:
        head = _true_head(teacher.data, tasks.label(teacher.space))
        for image in _set_images(samples, teacher.data):
            if samples.true_label(head, image) is not None:
                yield _true_strip(samples, image, [head])


def _true_head(dataset: str, label: Label) -> SampleHead:
    return SampleHead(label.task, label, 0.0, dataset, is_learned=True)


def _set_images(samples: RunSamples, name: str) -> Iterator[StoredImage]:
    """Yield images of the first shard of a set, by the hash of their bytes."""
    splits = ((split, shard) for split in SPLITS for shard in samples.sets[name].images(split).shards)
    for split, shard in splits:
        for _, row in sorted((key, row) for row, key in enumerate(shard.keys)):
            yield StoredImage(name, split, shard, row, samples.sets[name].channels)
        return


def _true_strip(samples: RunSamples, stored: StoredImage, heads: list[SampleHead]) -> list[Picture]:
    image = thumbnail(stored.open())
    labels = [samples.draw(image, head, samples.true_label(head, stored), head.teacher, "true label") for head in heads]
    return [Picture(image, stored.dataset, stored.metadata.source), *labels]


def _pool_strips(samples: RunSamples, artifact: Artifact) -> Strips:
    """Yield images of a pool, in one strip."""
    stored = pool_images(samples, MAX_PICTURES // 2, artifact)
    yield [Picture(thumbnail(image.open()), image.dataset, image.metadata.source) for image in stored]


def _stage_strips(samples: RunSamples, artifact: Artifact) -> Strips:
    """Yield images that a stage learned from, in one strip."""
    for pool in of_kind(samples.run.artifacts.values(), "stage_pool").values():
        yield from _pool_strips(samples, pool)


def _labelled_strips(samples: RunSamples, artifact: Artifact) -> Strips:
    """Yield images of the pool with the labels of every teacher, or of every head of the student."""
    files: dict[str, dict[tuple[str, str], StoredFile]] = {}
    for entry in artifact.load(LABEL_INDEX, read_json):
        of_maker = files.setdefault(entry["teacher"], {})
        of_maker[entry["set"], entry["shard"]] = artifact.external_file(entry["path"])
    heads = [_maker_head(maker, next(iter(of_maker.values()))) for maker, of_maker in files.items()]
    for stored in pool_images(samples, MAX_PICTURES // 2):
        image, place = thumbnail(stored.open()), (stored.dataset, stored.shard.name)
        strip = [Picture(image, stored.metadata.source, stored.dataset)]
        for head in heads:
            file = files[head.teacher].get(place)
            value = samples.read_label(file, head, stored.row, head.threshold) if file else None
            note = f"{head.label.task}, {head.least}" if head.threshold else head.label.task
            strip.append(samples.draw(image, head, value, head.teacher, note))
        yield strip


def _maker_head(maker: str, file: StoredFile) -> SampleHead:
    """Return the head of one who made labels, as a file of these labels describes them."""
    label = open_labels(file, lambda parquet: tasks.label_of_file(parquet.schema_arrow, file))
    return SampleHead(maker, label, label.default_threshold, None, is_learned=True)


def _learned_strips(samples: RunSamples, artifact: Artifact) -> Strips:
    return pool_strips(samples)


STRIPS: dict[str, Callable[[RunSamples, Artifact], Strips]] = {
    "data": _set_strips,
    "teacher": _teacher_strips,
    "pool": _pool_strips,
    "stage_pool": _pool_strips,
    "label": _labelled_strips,
    "student": _learned_strips,
    "stage": _stage_strips,
}
"""By kind of step. What measures has none: the report has held-out images with predictions."""
