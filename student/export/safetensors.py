"""The student's backbone under timm's own names, in one file that `timm.create_model` loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.models.backbone import size_options
from pipeline.models.checkpoint import read_tensors, write_tensors
from pipeline.steps.artifact import Artifact, read_json

SUFFIX = ".safetensors"
WHY = "timm reads the format off the suffix"
FILE = "backbone.safetensors"


def export(student: Artifact, to: Path, heads: Sequence[str]) -> list[str]:
    """Write the backbone of a trained student to `to`, and return the line of Python that loads it.

    The file holds every tensor of `timm.create_model(name, num_classes=0)` and nothing else; a transformer's embeddings
    of positions are those of the student's input. It says in its header which model that is, and for which input it was
    trained. ConfigError if heads are asked for: it holds none.
    """
    if heads:
        raise ConfigError(f"--head {heads[0]}: safetensors holds the backbone and no head; onnx holds heads.")
    config = student.load("model.json", read_json)
    _, tensors = student.load(FILE, read_tensors)
    about = {"model": config["backbone"], "image_size": config["image_size"], "student": student.fingerprint}
    write_tensors(to, tensors, about)
    told = {"num_classes": 0, **size_options(config["backbone"], config["image_size"]), "checkpoint_path": str(to)}
    options = ", ".join(f"{key}={value!r}" for key, value in told.items())
    return ["Load it with", f"    timm.create_model({config['backbone']!r}, {options})"]
