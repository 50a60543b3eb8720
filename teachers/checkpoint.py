"""A teacher or student of an earlier run as a teacher: its network, one of its heads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import ConfigError, require_one_of
from pipeline.recipe.teacher import TeacherConfig
from pipeline.steps.artifact import Inputs, read_json, write_json
from pipeline.stores.labels import LabelSpace

if TYPE_CHECKING:
    from tasks.prediction import Predictor


class Config(TeacherConfig):
    """A trained network of this project."""

    kind: Literal["checkpoint"] = "checkpoint"
    weights: str
    """The `model.safetensors` of an artifact of a supervised teacher or a student; `model.json` lies beside it."""
    head: str | None = None
    """Which of its heads; not needed if it has one."""

    def check(self) -> None:
        """The network is there and has the head, for the task."""
        self.space()

    def backbone_name(self) -> str:
        return str(self._about()["backbone"])

    def space(self) -> tuple[str, LabelSpace]:
        """(head, its label space). ConfigError if the network has no such head, or the head is of another task."""
        heads = self._about()["heads"]
        head = self.head or (next(iter(heads)) if len(heads) == 1 else "")
        space = LabelSpace.from_json(heads[require_one_of(head, heads, "head")])
        if space.task != self.task:
            raise ConfigError(f"head {head!r} is for {space.task!r}, the recipe says {self.task!r}.")
        return head, space

    def _about(self) -> dict[str, Any]:
        """What the network was built from. ConfigError if there is none."""
        beside = Path(self.weights).expanduser().with_suffix(".json")
        if not beside.is_file():
            raise ConfigError(f"weights: {self.weights} has no {beside.name} beside it, as a trained network has.")
        about: dict[str, Any] = read_json(beside)
        if about.get("format") != "network":
            raise ConfigError(f"weights: {self.weights} is of format {about.get('format')!r}, not a network.")
        return about


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Copy the network into the artifact."""
    from tasks.teacher import Teacher

    teacher = Config.model_validate(config["teacher"])
    head, space = teacher.space()
    weights = Path(teacher.weights).expanduser()
    shutil.copyfile(weights, out / "model.safetensors")
    shutil.copyfile(weights.with_suffix(".json"), out / "model.json")
    write_json(out / "head.json", {"head": head, "name": config["name"]})
    Teacher("checkpoint", space).write(out)
    return {"classes": len(space.classes)}


def load(folder: Path) -> Predictor:
    """The network, with the one head under the teacher's name."""
    from tasks.network import Network
    from tasks.prediction import OneHead, Predictor, Preprocessing

    network = Network.load(folder)
    chosen = read_json(folder / "head.json")
    tasks = {chosen["name"]: network.tasks[chosen["head"]]}
    only = OneHead(network, chosen["head"], chosen["name"])
    return Predictor(only, tasks, Preprocessing(network.config.image_size))
