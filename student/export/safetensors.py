"""The student's backbone as one safetensors file under timm's own names."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts import Artifact, read_json
from pipeline.backbone import size_options
from pipeline.checkpoint import read_tensors, write_tensors
from pipeline.errors import ConfigError

FILE = "backbone.safetensors"


def export_backbone(student: Artifact, to: Path) -> str:
    """Write the backbone of a trained student to `to` and return the line of Python that loads it.

    The file holds every tensor of `timm.create_model(name, num_classes=0)` and nothing else; a transformer's embeddings
    of positions are those of the student's input. It says in its header
    which model that is, and for which input it was trained. ConfigError if `to` is not a .safetensors file: timm
    goes by the suffix.
    """
    if to.suffix != ".safetensors":
        raise ConfigError(f"--to {str(to)!r}: timm reads the format off the suffix; end it in .safetensors.")
    config = student.load("model.json", read_json)
    _, tensors = student.load(FILE, read_tensors)
    about = {
        "model": config["backbone"],
        "image_size": config["image_size"],
        "student": student.manifest["fingerprint"],
    }
    to.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(to, tensors, about)
    told = {"num_classes": 0, **size_options(config["backbone"], config["image_size"]), "checkpoint_path": str(to)}
    return f"timm.create_model({config['backbone']!r}, {', '.join(f'{key}={value!r}' for key, value in told.items())})"
