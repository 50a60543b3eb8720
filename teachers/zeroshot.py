"""Zero-shot teacher: a published model that is told its classes in words, and needs no training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pipeline.errors import DataError, error_context
from pipeline.recipe.augment import Resize
from pipeline.recipe.teacher import TeacherConfig
from pipeline.recipe.weight_names import HUB
from pipeline.sources._classes import check_distinct
from pipeline.steps.artifact import Inputs, read_json, write_json
from pipeline.stores.labels import LabelSpace
from teachers._held_out import measure_published
from teachers._hugging_face import NEEDS_TRANSFORMERS

if TYPE_CHECKING:
    from tasks.prediction import Predictor

TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "a close-up photo of a {}.", "a blurry photo of a {}.")
WORDED = ("classification", "multilabel")
"""Tasks whose phrases are put into templates."""


def _phrases_by_class(prompts: Any) -> list[tuple[Any, Any]]:
    """Return each class with its phrases; a name in a list is its own phrase."""
    return list(prompts.items()) if isinstance(prompts, Mapping) else [(name, [name]) for name in prompts]


def _check_prompts(prompts: Any) -> Any:
    """Return prompts as they are. Raises ValueError unless each class has phrases, and no two classes have the same."""
    if not isinstance(prompts, Mapping | list) or not prompts:
        raise ValueError(f"{prompts!r} names no class: write phrases by class, as in {{car: [car, van]}}")
    owners: dict[str, Any] = {}
    for name, phrases in _phrases_by_class(prompts):
        if not isinstance(phrases, list) or not phrases:
            raise ValueError(f"class {name!r} has no list of phrases, but {phrases!r}: write {{{name}: [{name}]}}")
        for phrase in phrases:
            if not isinstance(phrase, str) or not phrase.strip():
                raise ValueError(f"class {name!r}: {phrase!r} is no phrase: write words, in quotes if need be")
            words = " ".join(phrase.lower().split())
            if words in owners:
                raise ValueError(
                    f"the phrase {phrase!r} of class {name!r} is there twice, the other one for {owners[words]!r}: "
                    "say each thing once, in whatever case"
                )
            owners[words] = name
    return prompts


class Config(TeacherConfig):
    """A model that compares images with text, and the text. Needs the extra `transformers`."""

    readout = "vector"
    kind: Annotated[Literal["zeroshot"], NEEDS_TRANSFORMERS] = "zeroshot"
    task: Literal["classification", "multilabel", "detection", "segmentation"]
    weights: str
    """A folder that `save_pretrained` wrote, or `hub:<owner>/<model>` to download from the Hugging Face hub: CLIP or
    SigLIP for classification, SigLIP for multilabel, Grounding DINO or OWLv2 for detection, CLIPSeg for segmentation.
    """
    prompts: Annotated[dict[str, list[str]] | list[str], BeforeValidator(_check_prompts)]
    """The phrases that describe each class, as in {car: [car, van], person: [person, pedestrian]}. A class has the
    largest score of its phrases. A list of names stands for classes that are their own phrases."""
    classes: tuple[str, ...] = ()
    """The classes in the order of the labels; that of `prompts` if not given."""
    templates: Annotated[list[str], Field(min_length=1)] | None = None
    """Sentences that each phrase is put into, for `{}`, and whose mean describes it, for classification and multilabel;
    four of "a photo of a {}." and the like if not given."""
    background: str | None = None
    """Name of a class, the first one, for pixels that are more likely of no class than of one; without it they have the
    class that is likeliest, with little confidence. For segmentation."""
    image_size: int | None = Field(default=None, ge=32)
    """Side of the square that images are resized to, pixels; the model's own if not given."""
    resize: Resize | None = None
    """How images become square: `stretch` them to fill it, or `pad` them, which keeps their aspect ratio; if not given,
    `pad` for OWLv2, else `stretch`. CLIP's images are cropped at their centre instead."""

    @model_validator(mode="before")
    @classmethod
    def _keep_order(cls, given: Any) -> Any:
        """Note the order of the prompts: stored configurations have their keys sorted."""
        prompts = given.get("prompts") if isinstance(given, Mapping) and not given.get("classes") else None
        if not isinstance(prompts, Mapping | list) or not all(isinstance(name, str) for name in prompts):
            return given
        return {**given, "classes": list(prompts)}

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if sorted(self.classes) != sorted(self.prompts):
            given = list(self.classes), list(self.prompts)
            raise ValueError("classes {} are not those of prompts, {}: leave them out".format(*given))
        if self.task == "classification" and len(self.classes) == 1:
            name = self.classes[0]
            raise ValueError(
                f"prompts name the class {name!r} alone, which every image would have: add the others, as in "
                f"{{{name}: [...], other: [...]}}, or write task: multilabel"
            )
        if self.templates is not None and self.task not in WORDED:
            raise ValueError(f"templates {self.templates} are for {' and '.join(WORDED)} alone: leave them out")
        if self.background is not None and (self.task != "segmentation" or self.background in self.classes):
            raise ValueError(
                f"background {self.background!r} is a class beside those of prompts, for segmentation: leave it out"
            )
        try:
            check_distinct(self.label_space().classes)
        except DataError as error:
            raise ValueError(str(error)) from error
        return self

    @field_validator("templates")
    @classmethod
    def _check_templates(cls, templates: list[str] | None) -> list[str] | None:
        for template in templates or ():
            if template.count("{}") != 1:
                raise ValueError(f"{template!r} has no one place for a phrase: write {{}} there, once")
        return templates

    def label_space(self) -> LabelSpace:
        return LabelSpace(self.task, (*([self.background] if self.background else []), *self.classes))

    def about(self) -> dict[str, Any]:
        """Return the teacher's settings with all phrases in one list, each one's class, and templates for each."""
        by_class = dict(_phrases_by_class(self.prompts))
        phrases = [(phrase, number) for number, name in enumerate(self.classes) for phrase in by_class[name]]
        return {
            **self.model_dump(mode="json", include={"weights", "task", "image_size", "resize", "background"}),
            "classes": list(self.label_space().classes),
            "phrases": [phrase for phrase, _ in phrases],
            "class_of_phrase": [number for _, number in phrases],
            "templates": list(self.templates or TEMPLATES) if self.task in WORDED else ["{}"],
        }

    def check(self) -> None:
        """Raise ConfigError if a folder has no model for the task, or its tokenizer can't read the prompts.

        What is on the hub is checked once it is there.
        """
        from teachers.models.zeroshot_prompts import check_prompts, load_tokenizer

        if not self.weights.startswith(HUB):
            check_prompts(load_tokenizer(self.about()), self.about())


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Copy model and weights into the artifact, with the prompts as the model reads them."""
    from pipeline.models.checkpoint import write_tensors
    from teachers.models.zeroshot_models import PROMPTS, describe, fetch
    from teachers.models.zeroshot_prompts import encode_prompts

    teacher = Config.model_validate(config["teacher"])
    about = {**teacher.about(), "head": config["name"]}
    with error_context(f"teachers.{config['name']}"):
        model, processor = fetch(about)
        write_tensors(out / PROMPTS, encode_prompts(model, about))
        write_json(out / "model.json", describe(model, processor, about))
    model.save_pretrained(out, max_shard_size="1TB")  # one file
    found = measure_published(config, inputs, out, load)
    found.published_teacher("zeroshot", teacher.label_space()).write(out)
    return {"classes": len(teacher.classes), "phrases": len(about["phrases"]), **found.published_counts()}


def load(folder: Path) -> Predictor:
    """Load the model with its prompts; its preprocessing is the published one except that the input is square."""
    from teachers.models.zeroshot_models import build_predictor

    return build_predictor(folder, read_json(folder / "model.json"))
