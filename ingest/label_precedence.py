"""Label precedence: which label of a pool image a head of the student learns, a true one before its teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import tasks
from ingest.dataset import IngestedSet, check_labels_fit
from ingest.pool import rejected_rows
from pipeline.data.dataset import LabelSource
from pipeline.steps.artifact import Artifact, read_json
from pipeline.stores.images import ImageShard
from pipeline.stores.labels import LabelOrigin, LabelSpace
from pipeline.stores.naming import LABEL_INDEX, LABEL_STEP


class LabelledHead(Protocol):
    """A head of the student, by what decides where its labels come from."""

    @property
    def teacher(self) -> str: ...

    @property
    def space(self) -> LabelSpace: ...

    @property
    def data(self) -> str | None:
        """The set that the teacher was trained on, if it is one of the run's."""

    @property
    def threshold(self) -> float:
        """The smallest probability of a pseudo label that is kept; without a calibration, the smallest score."""

    @property
    def applicability(self) -> float:
        """The smallest applicability of a pseudo label that is kept."""


class RankedSource(NamedTuple):
    """A label source, and the set that its true labels are from; None for pseudo labels."""

    source: LabelSource
    truth: str | None


class LabelPrecedence:
    """The label sources of each head for shards of the pool; the first source with a label for an image wins.

    True labels come first: those of the sets that `student.truths` names for the teacher, then those of the set that
    the teacher was trained on. The teacher's pseudo labels come last, without those that were rejected by hand.

    Args:
        labels: `student.labels` of the recipe: true_first, pseudo_only or true_only
        truths: `student.truths` of the recipe: sets by teacher
        sets: all sets of the run by name
        artifacts: the run's artifacts by step, or those that the student is trained from
        step: the one of these whose pseudo labels they are
    """

    def __init__(
        self,
        labels: str,
        truths: Mapping[str, Sequence[str]],
        sets: Mapping[str, IngestedSet],
        artifacts: Mapping[str, Artifact],
        step: str = LABEL_STEP,
    ) -> None:
        self.labels, self.truths, self.sets, self.artifacts, self.step = labels, truths, sets, artifacts, step
        entries = artifacts[step].load(LABEL_INDEX, read_json) if step in artifacts else []
        self._pseudo = {(entry["set"], entry["shard"], entry["teacher"]): entry for entry in entries}
        self._rejected = rejected_rows(artifacts)
        self._true_labels: dict[str, TrueLabelIndex] = {}

    def expects_labels(self, teacher: str, dataset: str) -> bool:
        """Return True if a teacher's pseudo labels of a set are used, so that they have to be there."""
        sets = self.artifacts[self.step].manifest["config"].get("labels", {}) if self.labels != "true_only" else {}
        return self.labels != "true_only" and dataset in sets.get(teacher, (dataset,))

    def sources(self, head: LabelledHead, dataset: str, shard: ImageShard) -> list[RankedSource]:
        """Return the label sources for a training shard of the set `dataset`, the one that wins first.

        Raises ConfigError if a set of `student.truths` has no labels that fit the teacher.
        """
        found = [
            RankedSource(source, name)
            for name in self._truth_sets(head)
            for source in self._true_labels[name].sources(head.space, dataset, shard)
        ]
        place = (dataset, shard.name, head.teacher)
        if self.labels != "true_only" and place in self._pseudo:
            entry, without = self._pseudo[place], self._rejected.get(place)
            file = self.artifacts[self.step].external_file(entry["path"])
            label, excluded = tasks.label(head.space), without or frozenset()
            made_by = LabelOrigin("pseudo", entry.get("maker", head.teacher))
            source = LabelSource(file, label, head.threshold, head.applicability, excluded=excluded, origin=made_by)
            found.append(RankedSource(source, None))
        return found

    def _truth_sets(self, head: LabelledHead) -> list[str]:
        """Return the sets whose true labels the head learns, the one that wins first, each opened."""
        if self.labels == "pseudo_only":
            return []
        named = self.truths.get(head.teacher, ())
        for name in named:
            check_labels_fit(f"student.truths.{head.teacher}", head.teacher, head.space, name, self.sets[name].spaces)
        own = [head.data] if head.data is not None and head.data in self.sets else []
        names = list(dict.fromkeys([*named, *own]))
        for name in names:
            if name not in self._true_labels:
                self._true_labels[name] = TrueLabelIndex(name, self.sets[name])
        return names


class TrueLabelIndex:
    """True labels of the images of one set in some splits, found for images of other sets by the images' keys."""

    def __init__(self, name: str, ingested: IngestedSet, splits: Sequence[str] = ("train",)) -> None:
        self.name, self.ingested = name, ingested
        shards = [(split, shard) for split in splits for shard in ingested.images(split).shards]
        self._places = {
            key: ((split, shard.name), row) for split, shard in shards for row, key in enumerate(shard.keys)
        }

    def sources(self, space: LabelSpace, dataset: str, shard: ImageShard, split: str = "train") -> list[LabelSource]:
        """Return the labels for a shard of a split of the set `dataset`: its own, or those of images in both sets."""
        if dataset == self.name:
            return [self._source(space, (split, shard.name))]
        places = [self._places.get(key, (None, -1)) for key in shard.keys]
        return [
            self._source(space, other, tuple(row if where == other else -1 for where, row in places))
            for other in sorted({where for where, _ in places if where})
        ]

    def _source(self, space: LabelSpace, place: tuple[str, str], rows: tuple[int, ...] | None = None) -> LabelSource:
        file, origin = self.ingested.true_labels(space.task, *place), LabelOrigin("true", self.name)
        return LabelSource(file, tasks.label(space), label_rows=rows, origin=origin)
