"""Export of the student's backbone under timm's names, in one safetensors file that `timm.create_model` loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.models.checkpoint import read_tensors, write_tensors
from pipeline.models.timm_models import img_size_options
from pipeline.steps.artifact import Artifact, read_json
from student.export import BACKBONE

SUFFIX = ".safetensors"
SUFFIX_REASON = "timm reads the format off the suffix"


def export(student: Artifact, to: Path, heads: Sequence[str]) -> list[str]:
    """Write the student's backbone to `to`, and return the line of Python that loads it.

    The file holds every tensor of `timm.create_model(name, num_classes=0)` and nothing else; a transformer's position
    embeddings are for the student's image size. Its header names the model and the image size. Raises ConfigError if
    heads are named.
    """
    if heads:
        raise ConfigError(f"--head {heads[0]}: safetensors holds the backbone and no head; onnx holds heads.")
    config = student.load("model.json", read_json)
    _, tensors = student.load(BACKBONE, read_tensors)
    model, image_size = config["backbone"], config["image_size"]
    write_tensors(to, tensors, {"model": model, "image_size": image_size, "student": student.fingerprint})
    channels = {"in_chans": config["channels"]} if "channels" in config else {}
    options = {"num_classes": 0, **channels, **img_size_options(model, image_size), "checkpoint_path": str(to)}
    arguments = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return ["Load it with", f"    timm.create_model({model!r}, {arguments})"]
