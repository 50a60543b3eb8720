"""Methods as published: their schedules, and what a paper has of heads, temperatures, positions and drop-path."""

from __future__ import annotations

import copy
import importlib
import re
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from timm.layers import DropPath, build_sincos2d_pos_embed

from pipeline.errors import PROJECT, ConfigError
from pipeline.models.backbone import Backbone
from pipeline.recipe.reader import read_section
from pipeline.recipe.stage import labelled_images
from selfsup.components.method import forward_concat
from selfsup.stages.budget import budget_of
from tests.selfsup import formulas
from tests.selfsup.small_methods import IMAGENET, LARGE, METHODS, SETTING, backbone, config, make, views

SCHEDULES: dict[str, dict[str, Any]] = {
    "simclr": {"optimizer": "lars", "lr": (1.2, 0.6), "weight_decay": 1e-6, "warmup": 0.1},
    "mocov2": {"optimizer": "sgd", "lr": (0.03, 0.0075), "weight_decay": 1e-4, "decay": "all", "warmup": 0.0},
    "byol": {"optimizer": "lars", "lr": (0.45, 0.1125), "weight_decay": 1e-6, "warmup": 0.1},
    "swav": {"optimizer": "lars", "lr": (0.6, 0.15), "weight_decay": 1e-6, "warmup": 0.0},
    "deepclusterv2": {"optimizer": "lars", "lr": (0.3, 0.075), "weight_decay": 1e-6, "warmup": 0.025},
    "dino": {"lr": (5e-4, 1.25e-4), "weight_decay": 0.04, "weight_decay_end": 0.4, "warmup": 0.1, "clip": 3.0},
    "mae": {"lr": (1.5e-4, 3.75e-5), "weight_decay": 0.05, "beta2": 0.95, "warmup": 0.05},
    "distill": {"lr": (5e-4 / 6**0.5, 5e-4 / 24**0.5), "weight_decay": 0.04, "warmup": 0.05, "clip": 1.0},
    "comatch": {
        "optimizer": "sgd",
        "nesterov": True,
        "lr": (0.015, 0.00375),
        "weight_decay": 5e-4,
        "warmup": 0.0,
    },
    "startup": {"optimizer": "sgd", "lr": (0.05, 0.0125), "weight_decay": 1e-4, "decay": "all", "warmup": 0.0},
    "depthcontrast": {"optimizer": "sgd", "lr": (0.03, 0.0075), "weight_decay": 1e-4, "decay": "all", "warmup": 0.0},
    "pretext": {
        "optimizer": "sgd",
        "nesterov": True,
        "lr": (0.2, 0.05),
        "weight_decay": 5e-4,
        "decay": "all",
        "warmup": 0.0,
    },
    "supcon": {"optimizer": "sgd", "lr": (0.125, 0.03125), "weight_decay": 1e-4, "decay": "all", "warmup": 0.01},
}
"""Settings in which methods were published: learning rates for 256 and for 64 images."""


@pytest.mark.parametrize("name", METHODS)
def test_method_config_has_the_published_schedule(name: str) -> None:
    expected = {"optimizer": "adamw", "clip": None, "decay": "matrices", "beta2": 0.999, **SCHEDULES[name]}
    large, small = expected.pop("lr")
    found = config(name, batch=256)
    assert {key: getattr(found, key) for key in expected} == expected
    assert (found.lr, config(name, batch=64).lr) == pytest.approx((large, small))
    assert config(name, batch=64, lr=0.5, optimizer="sgd").lr == 0.5
    other = "lars" if found.optimizer == "adamw" else "adamw"
    with pytest.raises(ValidationError, match=rf"optimizer is '{other}', but lr \(.*\) is the one that '{name}' was"):
        config(name, optimizer=other)
    if name == "simclr":
        assert config(name, batch=4096).lr == pytest.approx(4.8)


def test_method_config_reports_a_wrong_batch_alone() -> None:
    """The learning rate, which follows from it, is no second mistake."""
    settings = {"name": "stage", "method": "simclr", "data": ["pool"], "batch": 0}
    with pytest.raises(ConfigError) as caught:
        read_section(importlib.import_module("selfsup.simclr").Config, settings, "stages.stage")
    assert str(caught.value).count("\n") == 0
    assert "stages.stage.batch" in str(caught.value)


def test_dino_drops_paths_of_the_student_alone() -> None:
    made = config("dino").build_for_stage(Backbone("test_vit", 64, IMAGENET, config("dino").drop_path), LARGE)
    rates = [one.drop_prob for one in made.backbone.modules() if isinstance(one, DropPath)]
    assert rates
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.1)
    teacher: Any = made.teacher
    assert not any(one.drop_prob for one in teacher.modules() if isinstance(one, DropPath))
    assert not [one for one in Backbone("test_resnet", 64, IMAGENET, 0.1).modules() if isinstance(one, DropPath)]


def test_dino_teacher_temperature_rises_in_a_line() -> None:
    dino: Any = config("dino")
    found = [dino.teacher_temperature_at(progress) for progress in (0, 0.15, 0.3, 0.9)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert config("dino", teacher_warmup=0).teacher_temperature_at(0) == 0.07  # type: ignore[attr-defined]
    with pytest.raises(ValidationError, match=r"teacher_temperature_start \(0.2\) has to be below temperature \(0.1\)"):
        config("dino", teacher_temperature_start=0.2)


def test_simclr_head_has_a_batch_norm_after_each_layer() -> None:
    layers = [type(layer).__name__ for layer in make("simclr").head]  # type: ignore[union-attr]
    assert layers == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]


@pytest.mark.parametrize("start", ["scratch", "student"])
def test_mae_from_scratch_has_fixed_positions(start: str) -> None:
    before = backbone("mae", 64).model.pos_embed.clone()  # type: ignore[operator]
    model: Any = make("mae", LARGE, start=start).backbone.model
    patches, positions = 16, build_sincos2d_pos_embed([4, 4], model.embed_dim)
    is_fixed = torch.equal(model.pos_embed[0, -patches:], positions) and not model.pos_embed[0, :-patches].any()
    assert (is_fixed, model.pos_embed.requires_grad) == ((True, False) if start == "scratch" else (False, True))
    assert torch.equal(model.pos_embed, before) == (start == "student")


def test_mae_decoder_sees_the_class_token() -> None:
    method: Any = make("mae", LARGE)
    method.decoder_embed.register_forward_hook(lambda _, given, made: seen.append(made.shape[1]))
    method.decoder_blocks.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    seen: list[int] = []
    method.losses(views(method))["mae"].backward()
    assert seen == [1 + 4, 1 + 16], "the visible patches, then all of them, and the class token before them"


def test_supcon_sees_two_views_of_every_image_of_a_class() -> None:
    numbers = torch.tensor([0, 1, 0, 1, 2, 2, -1, -1, 0, 1, 2, 0, 1, 2, -1, 0])
    method: Any = make("supcon", SETTING._replace(classes=numbers))
    batch = views(method)
    with torch.no_grad():
        found = copy.deepcopy(method).losses(batch)["supcon"].item()
        z = torch.cat(forward_concat(method.head, forward_concat(method.backbone, batch.unlabelled)))
    own = torch.tensor([0, 1, 0, 1, 2, 2, 7, 8]).repeat(2)  # images without a class are alone in theirs
    assert found == pytest.approx(0.1 / 0.07 * formulas.supcon(z, own, 0.1), rel=1e-4)


def test_supcon_without_classes_is_nt_xent() -> None:
    method: Any = make("supcon")
    batch = views(method)
    with torch.no_grad():
        found = copy.deepcopy(method).losses(batch)["supcon"].item()
        z = forward_concat(method.head, forward_concat(method.backbone, batch.unlabelled))
    assert found == pytest.approx(0.1 / 0.07 * formulas.nt_xent(z[0], z[1], 0.1), rel=1e-4)


LINES = re.findall(r"`(\{method: [^`]*\})`", (PROJECT / "docs" / "how-to" / "stages.md").read_text("utf-8"))
PUBLISHED = [yaml.safe_load(line) for line in LINES]


@pytest.mark.parametrize("settings", PUBLISHED, ids=lambda settings: settings["method"])
def test_method_config_reads_published_settings_in_docs(settings: dict[str, Any]) -> None:
    published = {"name": "stage", "data": ["pool"], "start": "scratch", "backbone": "resnet50", **settings}
    stage = importlib.import_module(f"selfsup.{settings['method']}").Config.model_validate(published)
    stage.check()
    if stage.labels:
        labelled = labelled_images(stage, [str(number) for number in range(1000)])
        budget = budget_of(stage, labelled, 1_281_167)
        assert (labelled, budget.unlabelled(0), 2 * budget.unlabelled(0) + labelled) == (2560, 2816, 8192), (
            "SuNCEt's, of ImageNet"
        )


def test_published_settings_in_docs_name_methods() -> None:
    assert [each["method"] for each in PUBLISHED] == ["mocov2", "byol", "simclr", "simclr", "swav", "supcon"]
