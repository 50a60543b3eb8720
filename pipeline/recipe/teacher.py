"""What a recipe says of teachers, and of networks that are trained: what the kinds of teachers build on. No torch.

Apart from the recipe, which loads all kinds: each of them may be what is loaded first.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from pipeline.recipe.augment import AugmentConfig
from pipeline.recipe.base import BaseConfig, FitConfig, NamedBackbone


class TrainingConfig(FitConfig):
    """A network and how it is trained: common to supervised teachers and the student."""

    backbone: str = "resnet18"
    """Any timm model."""
    weights: str | None = None
    """Where the backbone starts: a file, `package:<module>/<file>`, `timm` (its published weights), or from scratch."""
    image_size: int = Field(default=224, multiple_of=32, ge=32)
    """Side of the square input, pixels."""
    width: int = Field(default=128, ge=8, multiple_of=8)
    """Channels of the pyramid and the heads."""
    proposals: int = Field(default=128, ge=8)
    """Region proposals per image that detection's box head looks at."""
    augment: AugmentConfig = AugmentConfig()
    """How far training views may go."""

    def named_backbones(self) -> Sequence[NamedBackbone]:
        return [NamedBackbone(self.backbone, self.image_size, self.weights)]


class TeacherConfig(BaseConfig):
    """What every teacher states."""

    kind: str
    """What makes the teacher: the name of a file in `teachers/`."""
    task: str
    """What it teaches: the name of a folder in `tasks/`."""
    require: dict[str, float] = {}
    """Metrics to reach on its held-out images (`val`, or else `test`) before it may label, as {miou: 0.3}; for teachers
    that are trained here."""

    def backbone_name(self) -> str | None:
        """The timm name of the backbone that it leaves for others to start from; None if it leaves none. ConfigError if
        that is to be read from a file, and the file is not there or is another.
        """
        return None
