"""A root in which the world's teachers label its pool."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ingest.pool import pool_shards
from pipeline.steps.artifact import Inputs
from pipeline.stores.images import ImageShard
from teachers.labelling.labeller import label_pool

CONFIG: dict[str, Any] = {
    "max_failed": 0.0,
    "batch": 3,
    "require": dict.fromkeys(("kinds", "masks", "boxes", "depth"), "none"),
}
LabelProgress = Callable[[str, float, str], None]


@dataclasses.dataclass
class LabelSandbox:
    """A root in which the world's teachers label its pool."""

    inputs: Inputs

    @property
    def root(self) -> Path:
        return Path(self.inputs.runtime.root.path)

    def label(self, without: tuple[str, ...] = (), **config: Any) -> Mapping[str, Any]:
        """Run the step without some of the teachers."""
        kept = {name: made for name, made in self.inputs.artifacts.items() if name not in without}
        out = self.root / "index"
        out.mkdir(parents=True, exist_ok=True)
        return label_pool({**CONFIG, **config}, Inputs(kept, self.inputs.runtime), out)

    def files(self) -> dict[str, bytes]:
        """Return every file under `labels` with its bytes."""
        found = sorted((self.root / "labels").rglob("*.*"))
        return {str(path.relative_to(self.root / "labels")): path.read_bytes() for path in found}

    def times(self) -> dict[str, int]:
        """Return the time of writing of every file under `labels`, in nanoseconds."""
        return {name: (self.root / "labels" / name).stat().st_mtime_ns for name in self.files()}

    def shards(self) -> list[ImageShard]:
        return [shard for _, shard, _ in pool_shards(self.inputs["pool"], self.inputs.of_kind("data"))]


MakeSandbox = Callable[..., LabelSandbox]
