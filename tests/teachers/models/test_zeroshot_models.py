"""Zero-shot teachers predict what the models themselves predict. Needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

import tasks
from pipeline.steps.artifact import Inputs
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.stores.labels import Value
from tasks.prediction import Predictor
from teachers import zeroshot
from teachers.models.torchvision_models import MIN_SIDE, resize_to_stride
from tests.teachers.small_zeroshot import MAKERS, SIDE, TASKS, WORDS, random_model, save, transformers

NMS_IOU = pytest.importorskip("teachers.models.zeroshot_models", reason="transformers is not installed").NMS_IOU

PORTRAIT = (48, 96)
"""(width, height) of an image."""
PROMPTS = {"car": ["car", "van"], "person": ["person", "pedestrian"], "cat": ["cat"]}
SINGLE = {"car": ["car"], "person": ["person walking"], "cat": ["cat"]}
every_type = pytest.mark.parametrize("name", MAKERS)


def make(folder: Path, name: str, **settings: Any) -> tuple[Any, Any, Any, Any]:
    """Make a teacher of a type of model, and load it from its artifact alone; return the model's parts as well."""
    model, processor, tokenizer = random_model(name)
    published = save(folder, model, processor, tokenizer)
    out = folder / "out"
    out.mkdir(parents=True)
    teacher = {"kind": "zeroshot", "task": TASKS[name], "weights": str(published), "prompts": PROMPTS, **settings}
    zeroshot.make({"name": "mine", "teacher": teacher, "seed": 0}, Inputs({}, Runtime(Root.of(out))), out)
    published.rename(folder / "gone")
    return model, processor, tokenizer, zeroshot.load(out)


def pictures(count: int = 1, size: tuple[int, int] = PORTRAIT) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 6, 3, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize(size, Image.Resampling.BICUBIC) for each in coarse]


def stacked(predictor: Predictor, images: list[Image.Image]) -> torch.Tensor:
    """Return the input of the teacher, uint8 (B, 3, S, S)."""
    inputs = np.stack([predictor.preprocessing(image, image.size) for image in images])
    return torch.from_numpy(inputs).permute(0, 3, 1, 2)


def values(predictor: Predictor, images: list[Image.Image]) -> list[Value]:
    predicted = predictor.predict(stacked(predictor, images), [image.size for image in images])
    return [predictor.values(predicted, index, image.size)["mine"] for index, image in enumerate(images)]


def published_input(processor: Any, predictor: Predictor, images: list[Image.Image]) -> torch.Tensor:
    """Return the library's input, made of the teacher's: resizing differs, and has no part in what is compared."""
    arrays = list(stacked(predictor, images).permute(0, 2, 3, 1).numpy())
    options = {"do_pad": False, "do_center_crop": False, "return_tensors": "pt"}
    pixels: torch.Tensor = processor(arrays, **options)["pixel_values"]
    return pixels


def in_template(phrases: list[str], template: str = "a photo of a {}.") -> list[str]:
    return [template.format(phrase) for phrase in phrases]


def test_clip_teacher_gives_what_the_pipeline_of_the_library_gives(tmp_path: Path) -> None:
    template = "this is a photo of a {}."
    model, processor, tokenizer, predictor = make(tmp_path, "clip", prompts=SINGLE, templates=[template])
    [image] = pictures(size=(SIDE, SIDE))  # neither resized nor cropped
    ask = transformers.pipeline(
        "zero-shot-image-classification", model=model, tokenizer=tokenizer, image_processor=processor
    )
    phrases = {phrase: number for number, [phrase] in enumerate(SINGLE.values())}
    expected = [0.0] * len(phrases)
    for answer in ask(image, candidate_labels=list(phrases), hypothesis_template=template):
        expected[phrases[answer["label"]]] = answer["score"]
    [found] = values(predictor, [image])
    np.testing.assert_allclose(found["probs"], expected, rtol=1e-4)
    assert predictor.heads["mine"].space.classes == ("car", "person", "cat")
    assert predictor.preprocessing.crop_pct == 1.0


def logits_of(model: Any, tokenizer: Any, texts: list[str], pixels: torch.Tensor) -> torch.Tensor:
    padding = "max_length" if "siglip" in model.config.model_type else True
    with torch.inference_mode():
        read = tokenizer(texts, padding=padding, return_tensors="pt")
        asked = {key: read[key] for key in ("input_ids", "attention_mask")}
        logits: torch.Tensor = model(**asked, pixel_values=pixels).logits_per_image
    return logits


def test_clip_teacher_gives_a_class_the_largest_of_its_phrases(tmp_path: Path) -> None:
    model, processor, tokenizer, predictor = make(tmp_path, "clip", templates=["a photo of a {}."])
    images = pictures(2)
    phrases = in_template([phrase for each in PROMPTS.values() for phrase in each])
    by_phrase = logits_of(model, tokenizer, phrases, published_input(processor, predictor, images)).softmax(dim=1)
    best = torch.stack([by_phrase[:, :2].amax(1), by_phrase[:, 2:4].amax(1), by_phrase[:, 4]], dim=1)
    found = [value["probs"] for value in values(predictor, images)]
    np.testing.assert_allclose(found, best / best.sum(dim=1, keepdim=True), rtol=1e-4)


def test_embed_gives_a_phrase_the_mean_of_its_templates(tmp_path: Path) -> None:
    templates = ["a photo of a {}.", "this is a close - up of the {}"]
    model, _, tokenizer, predictor = make(tmp_path, "clip", prompts=SINGLE, templates=templates)
    unit = []
    with torch.inference_mode():
        for template in templates:
            texts = in_template([each for [each] in SINGLE.values()], template)
            features = model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
            unit.append(torch.nn.functional.normalize(features, dim=1))
    expected = torch.nn.functional.normalize(unit[0] + unit[1], dim=1)
    torch.testing.assert_close(predictor.network.prompts.embeddings, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_siglip_teacher_says_yes_or_no_to_each_class(tmp_path: Path, task: str) -> None:
    template = "this is a photo of a {}."
    model, processor, tokenizer, predictor = make(tmp_path, "siglip", prompts=SINGLE, templates=[template], task=task)
    images = pictures(2)
    phrases = in_template([phrase for [phrase] in SINGLE.values()], template)
    yes = logits_of(model, tokenizer, phrases, published_input(processor, predictor, images)).sigmoid()
    expected = yes / yes.sum(dim=1, keepdim=True) if task == "classification" else yes
    np.testing.assert_allclose([value["probs"] for value in values(predictor, images)], expected, rtol=1e-4)
    assert predictor.preprocessing.crop_pct is None


def boxes_of(answer: dict[str, Any], predictor: Predictor) -> Value:
    """Return the library's boxes, without those of one class that overlap, within the image, best first."""
    scale = torch.tensor(PORTRAIT) / torch.tensor(predictor.preprocessing.valid_size(PORTRAIT))
    answer = {name: answer[name] for name in ("boxes", "scores", "labels")}
    kept = batched_nms(answer["boxes"], answer["scores"], answer["labels"], NMS_IOU)
    clipped = clip_boxes_to_image(answer["boxes"][kept], PORTRAIT[::-1])
    inside = remove_small_boxes(clipped / scale.repeat(2), MIN_SIDE)
    kept, clipped = kept[inside], clipped[inside]
    return {
        "boxes": clipped.numpy(),
        "scores": answer["scores"][kept].numpy(),
        "classes": answer["labels"][kept].numpy(),
    }


def check_boxes(found: Value, expected: Value) -> None:
    assert len(found["boxes"]) > 2
    for name in ("classes", "scores", "boxes"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-3)
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"] <= np.tile(found["size"], 2)).all()


def test_owlv2_teacher_gives_the_boxes_of_the_library(tmp_path: Path) -> None:
    model, processor, tokenizer, predictor = make(tmp_path, "owlv2")
    assert (predictor.preprocessing.size, predictor.preprocessing.resize) == (SIDE, "pad")
    phrases = [phrase for each in PROMPTS.values() for phrase in each]
    for image in pictures(2):
        pixels = published_input(processor, predictor, [image])
        read = tokenizer(phrases, padding="max_length", return_tensors="pt")
        with torch.inference_mode():
            output = model(input_ids=read["input_ids"], attention_mask=read["attention_mask"], pixel_values=pixels)
        [answer] = processor.post_process_object_detection(output, 0.01, [image.size[::-1]])
        answer["labels"] = torch.tensor([0, 0, 1, 1, 2])[answer["labels"]]
        check_boxes(values(predictor, [image])[0], boxes_of(answer, predictor))


def grounded(parts: tuple[Any, Any, Any], predictor: Predictor, text: str, classes: list[int]) -> Value:
    """Return the library's boxes for one text, scored by the tokens that have a class, with these as labels."""
    (model, processor, tokenizer), [image] = parts, pictures()
    pixels = published_input(processor, predictor, [image])
    counted = torch.tensor(classes) >= 0
    with torch.inference_mode():
        read = tokenizer([text], return_tensors="pt")
        output = model(input_ids=read["input_ids"], attention_mask=read["attention_mask"], pixel_values=pixels)
        output.logits[..., : len(classes)][..., ~counted] = -torch.inf
        labels = torch.tensor(classes)[output.logits[0].argmax(dim=-1)]
        whole = transformers.GroundingDinoProcessor(processor, tokenizer)
        [answer] = whole.post_process_grounded_object_detection(output, threshold=-1, target_sizes=[image.size[::-1]])
    found = answer["scores"] > 0.01
    answer = {"boxes": answer["boxes"][found], "scores": answer["scores"][found], "labels": labels[found]}
    return boxes_of(answer, predictor)


def test_grounding_dino_teacher_gives_the_boxes_of_the_library(tmp_path: Path) -> None:
    prompts = {"car": ["car", "van"], "person": ["Person walking"]}
    *parts, predictor = make(tmp_path, "grounding-dino", prompts=prompts)
    assert (predictor.preprocessing.size, predictor.preprocessing.resize) == (2 * SIDE, "stretch")
    classes = [-1, 0, -1, 0, -1, 1, 1, -1, -1]
    expected = grounded(tuple(parts), predictor, "car. van. person walking.", classes)
    check_boxes(values(predictor, pictures())[0], expected)


def test_grounding_dino_teacher_reads_many_phrases_in_several_texts(tmp_path: Path) -> None:
    phrases = [f"{first} {second}" for first in WORDS[:4] for second in WORDS[:4]]
    *parts, predictor = make(tmp_path, "grounding-dino", prompts=phrases)
    assert len(predictor.network.best_of_class) == 2
    assert len(predictor.network.get_buffer("ids_0")) <= 32
    texts = [(0, phrases[:10]), (10, phrases[10:])]
    every = []
    for first, part in texts:
        classes = [-1, *(each for number in range(len(part)) for each in (first + number, first + number, -1)), -1]
        every.append(grounded(tuple(parts), predictor, ". ".join(part) + ".", classes))
    found = values(predictor, pictures())[0]
    expected = {name: np.concatenate([each[name] for each in every]) for name in every[0]}
    order = np.argsort(-expected["scores"], kind="stable")
    check_boxes(found, {name: array[order] for name, array in expected.items()})
    assert {number >= 10 for number in found["classes"]} == {True, False}, "of both texts"


def test_clipseg_teacher_gives_the_masks_of_the_model(tmp_path: Path) -> None:
    model, processor, tokenizer, predictor = make(tmp_path, "clipseg", resize="stretch")
    [image] = pictures()
    pixels = published_input(processor, predictor, [image])
    phrases = [phrase for each in PROMPTS.values() for phrase in each]
    with torch.inference_mode():
        read = tokenizer(phrases, padding=True, return_tensors="pt")
        asked = {key: read[key] for key in ("input_ids", "attention_mask")}
        masks = model(**asked, pixel_values=pixels.repeat(5, 1, 1, 1))
        logits = resize_to_stride(masks.logits[:, None], SIDE)[:, 0]
    by_class = torch.stack([logits[:2].amax(0), logits[2:4].amax(0), logits[4]]).sigmoid()
    [found] = values(predictor, [image])
    np.testing.assert_allclose(found["confidence"], by_class.amax(0), rtol=1e-4)
    np.testing.assert_array_equal(found["classes"], by_class.argmax(0))


def test_clipseg_teacher_gives_a_background_where_no_class_is_likelier(tmp_path: Path) -> None:
    [image] = pictures()
    *_, plain = make(tmp_path / "plain", "clipseg")
    *_, predictor = make(tmp_path / "more", "clipseg", background="nothing")
    assert predictor.heads["mine"].space.classes == ("nothing", "car", "person", "cat")
    [bare], [found] = values(plain, [image]), values(predictor, [image])
    likely = bare["confidence"] > 0.5
    assert likely.any()
    assert not likely.all()
    np.testing.assert_array_equal(found["classes"], np.where(likely, bare["classes"] + 1, 0))
    np.testing.assert_allclose(
        found["confidence"], np.where(likely, bare["confidence"], 1 - bare["confidence"]), rtol=1e-4
    )


@every_type
def test_zeroshot_teacher_predicts_a_batch_as_it_does_single_images(name: str, tmp_path: Path) -> None:
    *_, predictor = make(tmp_path, name)
    images = [*pictures(2), *pictures(1, (96, 40))]
    for together, alone in zip(
        values(predictor, images), (values(predictor, [each])[0] for each in images), strict=True
    ):
        for array in together:
            np.testing.assert_allclose(together[array], alone[array], rtol=1e-3, atol=1e-3)


@every_type
def test_zeroshot_teacher_with_prompts_in_another_order_gives_the_same_scores(name: str, tmp_path: Path) -> None:
    [image] = pictures()
    *_, predictor = make(tmp_path / "one", name)
    *_, other = make(tmp_path / "two", name, prompts=dict(reversed(PROMPTS.items())))
    [found], [turned] = values(predictor, [image]), values(other, [image])
    for array in found:
        back = 2 - turned[array] if array == "classes" else turned[array]
        back = back[::-1] if array == "probs" else back
        np.testing.assert_allclose(found[array], back, rtol=1e-3, atol=1e-3)


@every_type
def test_zeroshot_teacher_tells_a_vector_of_each_image(name: str, tmp_path: Path) -> None:
    *_, predictor = make(tmp_path, name)
    images = pictures(2)
    inputs = stacked(predictor, images)
    vectors = predictor.embed(inputs)
    assert vectors is not None
    assert vectors.ndim == 2
    assert not np.allclose(vectors[0], vectors[1])
    beside = predictor.predict_with_vectors(inputs, [PORTRAIT] * 2)[1]
    assert beside is not None
    np.testing.assert_allclose(beside, vectors, atol=1e-4)


@every_type
def test_zeroshot_teacher_takes_images_of_another_size(name: str, tmp_path: Path) -> None:
    *_, predictor = make(tmp_path, name, image_size=3 * SIDE)
    assert predictor.preprocessing.size == 3 * SIDE
    for array in values(predictor, pictures())[0].values():
        assert np.isfinite(array).all()


def test_zeroshot_teacher_keeps_boxes_below_any_threshold(tmp_path: Path) -> None:
    *_, predictor = make(tmp_path, "owlv2")
    [value] = values(predictor, pictures())
    label = tasks.label(predictor.heads["mine"].space)
    middle = float(np.median(value["scores"]))
    cut = label.decode(label.encode(value), middle)
    kept = value["scores"] >= np.float32(middle)
    assert 0 < kept.sum() < len(kept)
    for name in ("boxes", "scores", "classes"):
        np.testing.assert_array_equal(cut[name], value[name][kept])
