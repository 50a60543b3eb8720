"""Export of the student's backbone as a folder in the form of timm's models on the Hugging Face hub.

    config.json           architecture, preprocessing, num_classes 0
    model.safetensors     the backbone under timm's names
    README.md             the model card: what it was trained on, by which teachers, what was measured

`timm.create_model("local-dir:OUT", pretrained=True)` loads the folder without a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.models.backbone import Backbone
from pipeline.models.checkpoint import WEIGHTS, read_tensors, write_tensors
from pipeline.models.timm_models import img_size_options, statistics
from pipeline.steps.artifact import Artifact, read_json, write_json
from pipeline.storage.atomic import atomic_folder, check_absent
from student.export import BACKBONE
from student.export._model_card import model_card

SUFFIX = None
SUFFIX_REASON = "it is a folder"
CROP_MODES = {"stretch": "squash", "pad": "border"}
"""What timm calls the ways in which whole images become square."""
IN_WORDS = {
    "stretch": "Whole images are stretched to {size} x {size} pixels, bilinear with antialiasing.",
    "pad": (
        "Whole images are shrunk, bilinear with antialiasing, and padded at the right or the bottom to {size} x {size} "
        "pixels. timm pads both sides alike, so its vectors differ a little from those of the training."
    ),
}


def export(student: Artifact, to: Path, heads: Sequence[str]) -> list[str]:
    """Write the folder `to`, absent or empty before, and return the line of Python that loads it.

    Raises ConfigError if heads are named, or for an unusable folder.
    """
    if heads:
        raise ConfigError(f"--head {heads[0]}: hf holds the backbone and no head; onnx holds heads.")
    check_absent(to)
    config = student.load("model.json", read_json)
    _, tensors = student.load(BACKBONE, read_tensors)
    size, resize = config["image_size"], config["resize"]
    loading = f'import timm\n\nmodel = timm.create_model("local-dir:{{}}", pretrained=True).eval()\n{TRANSFORM}'
    words = IN_WORDS[resize].format(size=size)
    with atomic_folder(to) as folder:
        write_tensors(folder / WEIGHTS, tensors, {"student": student.fingerprint})
        write_json(folder / "config.json", hub_config(config["backbone"], size, resize))
        card = model_card(student, loading.format("PATH/TO/THIS/FOLDER"), words)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return ["Load it with", f'    timm.create_model("local-dir:{to}", pretrained=True)']


TRANSFORM = """\
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
vectors = model(transform(image).unsqueeze(0))  # (1, D)"""


def hub_config(backbone: str, image_size: int, resize: str) -> dict[str, Any]:
    """Return the `config.json` of a backbone in timm's form."""
    mean, std = statistics(backbone)
    options = img_size_options(backbone, image_size)
    return {
        "architecture": backbone.partition(".")[0],
        "num_classes": 0,
        "num_features": Backbone(backbone, image_size, (mean, std)).width,
        "model_args": {"num_classes": 0, **options},
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, image_size, image_size],
            "fixed_input_size": bool(options),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": CROP_MODES[resize],
            "mean": list(mean),
            "std": list(std),
            "custom_load": False,
        },
    }
