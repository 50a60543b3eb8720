"""Prompts that a model can't read are refused by name. Needs no network."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from teachers import zeroshot
from tests.teachers.small_zeroshot import TASKS, bert_tokenizer, random_model, save, transformers

MISSING = "transformers is not installed"
models: Any = pytest.importorskip("teachers.models.zeroshot_models", reason=MISSING)
prompts: Any = pytest.importorskip("teachers.models.zeroshot_prompts", reason=MISSING)


def config_for(folder: Path, name: str, **settings: Any) -> zeroshot.Config:
    published = folder / "published"
    if not published.exists():
        save(folder, *random_model(name))
    teacher = {"task": TASKS[name], "weights": str(published), "prompts": {"car": ["car"], "dog": ["dog"]}, **settings}
    return zeroshot.Config.model_validate(teacher)


@pytest.mark.parametrize("name", TASKS)
def test_check_accepts_what_a_tokenizer_knows(name: str, tmp_path: Path) -> None:
    config_for(tmp_path, name, prompts={"car": ["car", "van"], "person": ["Person walking"]}).check()


def test_check_leaves_the_hub_alone() -> None:
    zeroshot.Config(task="detection", weights="hub:nobody/nothing", prompts=["car"]).check()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "clip",
            {"prompts": ["car", "zyzzyva"]},
            r"prompts: the tokenizer of .* knows no word of 'zyzzyva': say it in",
        ),
        (
            "owlv2",
            {"prompts": ["car " * 20]},
            r"prompts: '(car )+' has 22 tokens, and the model reads 16: say it shorter",
        ),
        (
            "grounding-dino",
            {"prompts": ["car " * 40]},
            r"'(car )+' has 42 tokens, and the model reads 31: say it shorter",
        ),
        ("grounding-dino", {"prompts": ["car. van"]}, r"prompts: 'car\. van' has a '\.' or '\?', which ends a phrase"),
        (
            "clip",
            {"task": "detection"},
            r"weights '.*published' is a model of type 'clip', which does no detection by prompts here; models of type "
            r"grounding-dino \(hub:IDEA-Research/grounding-dino-tiny\) or owlv2 \(hub:google/owlv2-base-patch16\) do",
        ),
        ("clip", {"task": "multilabel"}, r"which does no multilabel by prompts here; models of type siglip \(hub:"),
    ],
)
def test_check_prompts_says_what_a_model_cannot_read(
    name: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_for(tmp_path, name, **settings).check()


@pytest.mark.parametrize("name", ["clip", "siglip", "grounding-dino"])
def test_load_tokenizer_refuses_a_folder_without_one(name: str, tmp_path: Path) -> None:
    config = config_for(tmp_path, name)
    for file in (tmp_path / "published").glob("*token*"):
        file.unlink()
    with pytest.raises(
        ConfigError, match=r"published' (can't be loaded|knows no word).*tokenizer|tokenizer of '.*knows"
    ):
        config.check()


def test_load_config_refuses_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    with pytest.raises(ConfigError, match=r"published' can't be loaded as a classification model: .*config\.json"):
        config_for(tmp_path, "clip").check()


def test_load_config_refuses_a_model_of_another_kind(tmp_path: Path) -> None:
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "published")
    with pytest.raises(ConfigError, match=r"is a model of type 'vit', which does no classification by prompts here"):
        config_for(tmp_path, "clip").check()


def test_fetch_refuses_a_size_of_no_whole_patches(tmp_path: Path) -> None:
    config = config_for(tmp_path, "clip", image_size=60)
    with pytest.raises(ConfigError, match="image_size 60 is no multiple of the 8 pixels of the model's patches"):
        models.fetch(config.about())


def test_encode_prompts_raises_what_check_raises(tmp_path: Path) -> None:
    good = config_for(tmp_path, "clip")
    model, _ = models.fetch(good.about())
    with pytest.raises(ConfigError, match="knows no word of 'zyzzyva'"):
        prompts.encode_prompts(model, config_for(tmp_path, "clip", prompts=["zyzzyva", "dog"]).about())
    shutil.rmtree(tmp_path / "published")


def about(*phrases: str) -> Mapping[str, Any]:
    return {"phrases": phrases, "class_of_phrase": range(len(phrases))}


def test_join_phrases_joins_as_the_library_does() -> None:
    tokenizer = bert_tokenizer()
    [(ids, classes)] = prompts.join_phrases(tokenizer, about("car", "Person walking", "cat"), limit=32)
    assert ids == tokenizer("car. person walking. cat.")["input_ids"]
    assert classes == [
        prompts.NO_CLASS,
        0,
        prompts.NO_CLASS,
        1,
        1,
        prompts.NO_CLASS,
        2,
        prompts.NO_CLASS,
        prompts.NO_CLASS,
    ]


@pytest.mark.parametrize("limit", [5, 6, 7, 8, 100])
def test_join_phrases_keeps_each_phrase_whole_and_all_texts_short(limit: int) -> None:
    phrases = ["car", "person walking", "cat", "dog", "van"]
    texts = list(prompts.join_phrases(bert_tokenizer(), about(*phrases), limit))
    assert all(len(ids) == len(classes) <= limit for ids, classes in texts)
    named = [number for _, classes in texts for number in classes if number != prompts.NO_CLASS]
    assert named == [0, 1, 1, 2, 3, 4]
    assert all(1 not in classes or classes.count(1) == 2 for _, classes in texts)
