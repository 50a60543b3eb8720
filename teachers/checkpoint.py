"""Teacher from a checkpoint of this project: one head of a supervised teacher's or a student's network."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import ConfigError, error_context, require_one_of
from pipeline.models.weights import find_weights, network_settings_file, read_network_settings
from pipeline.recipe.teacher import TeacherConfig
from pipeline.steps.artifact import Inputs, read_json, write_json
from pipeline.stores.labels import LabelSpace
from teachers._held_out import measure_published

if TYPE_CHECKING:
    from tasks.prediction import Predictor


class Config(TeacherConfig):
    """A trained network of this project, and one of its heads."""

    readout = "maps"
    kind: Literal["checkpoint"] = "checkpoint"
    weights: str
    """The `model.safetensors` of an artifact of a supervised teacher or a student; `model.json` lies beside it."""
    head: str | None = None
    """The head's name; not needed if the network has only one."""

    def check(self) -> None:
        """Raise ConfigError or DataError if the network is missing or damaged, or has no such head for the task."""
        import torch

        from pipeline.models.weight_loading import check_state
        from tasks.network import Network, NetworkConfig

        self.head_and_space()
        network_config = NetworkConfig.of_settings(self._settings(), str(self._settings_file()))
        with torch.device("meta"):  # no memory, no arithmetic
            network = Network(network_config)
        check_state(network, find_weights(self.weights))

    def backbone_name(self) -> str:
        return str(self._settings()["backbone"])

    def label_space(self) -> LabelSpace:
        return self.head_and_space()[1]

    def head_and_space(self) -> tuple[str, LabelSpace]:
        """Return the head's name and label space. Raises ConfigError if the network has no such head for the task."""
        heads = self._settings()["heads"]
        head = self.head or (next(iter(heads)) if len(heads) == 1 else "")
        with error_context(str(self._settings_file())):
            space = LabelSpace.from_json(heads[require_one_of(head, heads, "head")])
        if space.task != self.task:
            raise ConfigError(f"head {head!r} is for {space.task!r}, the recipe says {self.task!r}.")
        return head, space

    def _settings(self) -> dict[str, Any]:
        """Return the network's `model.json`. Raises ConfigError if there is none of this version."""
        return read_network_settings(find_weights(self.weights))

    def _settings_file(self) -> Path:
        return network_settings_file(find_weights(self.weights))


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Copy the network into the artifact."""
    teacher = Config.model_validate(config["teacher"])
    teacher.check()  # the file may have changed since the plan, and a damaged one must not become an artifact
    head, space = teacher.head_and_space()
    weights = find_weights(teacher.weights)
    shutil.copyfile(weights, out / "model.safetensors")
    shutil.copyfile(network_settings_file(weights), out / "model.json")
    write_json(out / "head.json", {"head": head, "name": config["name"]})
    found = measure_published(config, inputs, out, load)
    found.published_teacher("checkpoint", space).write(out)
    return {"classes": len(space.classes), **found.published_counts()}


def load(folder: Path) -> Predictor:
    """Load the network, with its one head under the teacher's name."""
    from torch import nn

    from tasks.network import Network
    from tasks.prediction import network_predictor

    network, chosen = Network.load(folder), read_json(folder / "head.json")
    head, name = chosen["head"], chosen["name"]
    network.tasks = {name: network.tasks[head]}
    network.heads = nn.ModuleDict({name: network.heads[head]})
    return network_predictor(network)
