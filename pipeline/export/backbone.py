"""The student's backbone as one safetensors file under timm's own names."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts import Artifact, read_json
from pipeline.checkpoint import read_tensors, write_tensors
from pipeline.errors import ConfigError

FILE = "backbone.safetensors"


def export_backbone(student: Artifact, to: Path) -> str:
    """Write the backbone of a trained student to `to` and return the line of Python that loads it.

    The file holds every tensor of `timm.create_model(name, num_classes=0)` and nothing else; it says in its header
    which model that is, and for which input it was trained. ConfigError if `to` is not a .safetensors file: timm
    goes by the suffix.
    """
    if to.suffix != ".safetensors":
        raise ConfigError(f"--to {str(to)!r}: timm reads the format off the suffix; end it in .safetensors.")
    config = read_json(student.path / "model.json")
    _, tensors = read_tensors(student.path / FILE)
    about = {
        "model": config["backbone"],
        "image_size": config["image_size"],
        "student": student.manifest["fingerprint"],
    }
    to.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(to, tensors, about)
    return f"timm.create_model({config['backbone']!r}, num_classes=0, checkpoint_path={str(to)!r})"
