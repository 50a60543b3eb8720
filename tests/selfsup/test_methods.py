"""Every method in `selfsup/`: its views, that its losses train it, and the properties that its paper promises."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.backbone import Backbone
from pipeline.recipe.stage import StageConfig
from pipeline.training.device import move_to_device
from pipeline.training.optimizer import build_optimizer
from selfsup.components.config import LABELLED_FAMILIES
from selfsup.components.method import StageSetting
from selfsup.mae import patchify, random_masking
from selfsup.stages.objective import StageObjective
from tests.selfsup.small_methods import (
    IMAGENET,
    METHODS,
    SETTING,
    backbone,
    config,
    initialized,
    make,
    views,
    with_teacher,
)
from tests.waiting_for_device import no_values

FAMILIES = {
    "simclr": "contrastive",
    "mocov2": "contrastive",
    "supcon": "contrastive",
    "byol": "self-distillation",
    "dino": "self-distillation",
    "swav": "clustering",
    "deepclusterv2": "clustering",
    "mae": "masked",
    "distill": "distillation",
    "comatch": "contrastive",
    "startup": "contrastive",
    "depthcontrast": "contrastive",
    "pretext": "pretext",
}


@pytest.mark.parametrize("name", METHODS)
def test_method_config_keys_differ_from_stage_config_keys(name: str) -> None:
    """Or a method's own `momentum` would be taken for the optimiser's. Keys with another default mean the same."""
    Config = importlib.import_module(f"selfsup.{name}").Config
    own = {key for key in Config.__annotations__ if key in Config.model_fields} - {"method"}
    for key in own & StageConfig.model_fields.keys():
        assert Config.model_fields[key].description is None
        assert Config.model_fields[key].annotation == StageConfig.model_fields[key].annotation


def test_method_families_are_those_of_the_papers() -> None:
    assert {name: make(name).family for name in METHODS} == FAMILIES


@pytest.mark.parametrize("name", METHODS)
def test_method_losses_fall_on_one_batch(name: str) -> None:
    still: dict[str, Any] = (
        {"teacher_momentum": 1.0, "center_momentum": 1.0, "teacher_warmup": 0.0} if name == "dino" else {}
    )  # or the target moves on
    method = initialized(name, **still)
    optimizer = torch.optim.AdamW([one for one in method.parameters() if one.requires_grad], lr=3e-3, weight_decay=0)
    found = []
    for step in range(30):
        torch.manual_seed(0)
        batch = views(method)
        batch = dataclasses.replace(batch, step=min(step, 9), epoch=0)
        loss = torch.stack(list(method.losses(batch).values())).sum()
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert min(found[-5:]) < found[1] - 0.02 * abs(found[1]), found


@pytest.mark.parametrize("name", METHODS)
def test_method_losses_reach_every_parameter_and_state_dict_is_complete(name: str) -> None:
    method = initialized(name)
    torch.stack(list(method.losses(views(method, step=5)).values())).sum().backward()
    missing = [part for part, one in method.named_parameters() if one.requires_grad and one.grad is None]
    assert missing == []
    again = make(name)
    again.load_state_dict(method.state_dict())
    torch.manual_seed(1)
    first = method.losses(views(method, step=6))
    torch.manual_seed(1)
    second = again.losses(views(again, step=6))
    assert {part: one.item() for part, one in first.items()} == {part: one.item() for part, one in second.items()}


@pytest.mark.parametrize("name", METHODS)
def test_method_losses_are_finite_in_bfloat16(name: str) -> None:
    method = initialized(name)
    for step in range(6):  # long enough to fill queues
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = torch.stack([loss.float() for loss in method.losses(views(method, step)).values()]).sum()
        total.backward()
        assert total.isfinite()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("labels", ["suncet", "supcon"])
def test_labelled_losses_of_contrastive_and_clustering_methods_only(name: str, labels: str) -> None:
    config_labels = {"method": labels, "images": 4}
    if config(name).labelled_loss:
        with pytest.raises(ValueError, match=f"{name} learns labelled images by their cross entropy: leave "):
            make(name, labels={**config_labels, "method": "supcon", "temperature": 0.5})
        return
    if FAMILIES[name] not in LABELLED_FAMILIES or name == "supcon":
        with pytest.raises(ConfigError, match=f"labels: '{name}' takes no labelled images"):
            make(name, labels=config_labels)
        return
    method = initialized(name, labels=config_labels)
    both, alone = method.losses(views(method, labelled=2)), method.losses(views(method))
    assert both.keys() - alone.keys() == {labels}
    both[labels].backward()
    assert any(one.grad is not None for one in method.backbone.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_trainable_norm_changes_only_norms_and_head(name: str) -> None:
    """HPT-BN: weights stay the same bit for bit; every scale, shift, running statistic and the head change."""
    method = initialized(name, trainable="norm")
    encoder = method.backbone
    norms = {id(one) for norm in encoder.norm_layers() for one in norm.parameters()}
    trained = {part: one for part, one in method.named_parameters() if one.requires_grad}
    own = {part for part, one in encoder.model.named_parameters() if id(one) in norms}
    inside = {part for part in trained if part.startswith("backbone.")}
    assert inside == {f"backbone.model.{part}" for part in own}
    assert trained.keys() > inside
    before = {part: one.clone() for part, one in encoder.model.state_dict().items()}
    head = {part: trained[part].detach().clone() for part in trained.keys() - inside}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for step in range(3, 6):
        torch.stack(list(method.losses(views(method, step)).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {part for part, one in encoder.model.state_dict().items() if not torch.equal(one, before[part])}
    statistics = {part for part in before if "running_" in part or "num_batches" in part}
    assert changed == own | statistics
    assert [part for part, one in head.items() if torch.equal(one, trained[part])] == []


@pytest.mark.parametrize("name", METHODS)
def test_trainable_norm_reaches_build_optimizer_before_train_mode(name: str) -> None:
    """Gradients that only `train()` switched on would come too late for the optimiser."""
    stage, encoder = config(name, trainable="norm"), backbone(name).eval()
    method = stage.build_for_stage(encoder, SETTING).eval()
    held = {id(one) for group in build_optimizer(method, stage).param_groups for one in group["params"]}
    norms = {part for part, kind in encoder.model.named_modules() if "Norm" in type(kind).__name__}
    there = {part for part, one in encoder.model.named_parameters() if id(one) in held}
    assert there == {f"{part}.{what}" for part in norms for what in ("weight", "bias")}
    assert {id(one) for part in method.children() if part is not encoder for one in part.parameters()} & held


def test_trainable_norm_of_resnet50_is_scale_and_shift_of_26560_channels() -> None:
    with torch.device("meta"):
        encoder = Backbone("resnet50", 224, IMAGENET)
        config("mocov2", trainable="norm").build_for_stage(encoder, SETTING)
    assert sum(one.numel() for one in encoder.parameters() if one.requires_grad) == 2 * 26_560


@pytest.mark.parametrize(
    ("name", "part", "key"),
    [
        ("mocov2", "key_encoder", "key_momentum"),
        ("byol", "target", "target_momentum"),
        ("dino", "teacher", "teacher_momentum"),
    ],
)
def test_momentum_encoder_is_a_copy_then_an_exact_average(name: str, part: str, key: str) -> None:
    momentum: dict[str, Any] = {key: 0.9}
    method = initialized(name, **momentum)
    encoder: Any = getattr(method, part)
    head: Any = method.head
    followed = [*method.backbone.parameters(), *head.parameters()]
    for mine, theirs in zip(encoder.network.parameters(), followed, strict=True):
        assert torch.equal(mine, theirs)
        assert not mine.requires_grad
    with torch.no_grad():
        for one in followed:
            one.add_(1)
    expected = [0.9 * mine + 0.1 * theirs for mine, theirs in zip(encoder.network.parameters(), followed, strict=True)]
    first = views(method, step=0)
    method.losses(first)
    found = list(encoder.network.parameters())
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted)
    held = [one.clone() for one in found]
    method.losses(first)
    assert all(torch.equal(one, before) for one, before in zip(found, held, strict=True)), "once a step"


@pytest.mark.parametrize("name", [name for name in METHODS if make(name).compares_images])
def test_compares_images_refuses_accumulate(name: str) -> None:
    with pytest.raises(ConfigError, match=f"accumulate is 2, but '{name}' compares the images of a batch"):
        make(name, accumulate=2)
    assert not make("byol", accumulate=2).compares_images


def test_method_config_check_refuses_view_sizes() -> None:
    accepted = config("dino", start="scratch", backbone="vit_tiny_patch16_224", image_size=32)
    accepted.check()
    with pytest.raises(
        ConfigError, match=r"'dino' shows the backbone views of \d+ x \d+ pixels, which 'mixer_s16_224'"
    ):
        config("dino", start="scratch", backbone="mixer_s16_224", image_size=224).check()


def test_encoder_width_is_output_width() -> None:
    assert Backbone("mobilenetv3_small_050", 32, IMAGENET).width == 1024


def test_dino_center_follows_the_mean_of_the_teacher() -> None:
    method: Any = make("dino", center_momentum=0.5)
    batch = views(method, step=0)
    mean = method.teacher(torch.cat(batch.unlabelled[:2])).mean(dim=0)
    method.center.fill_(1.0)
    method.losses(batch)
    torch.testing.assert_close(method.center, 0.5 + 0.5 * mean, atol=1e-5, rtol=1e-4)


def test_dino_config_teacher_temperature_is_below_temperature() -> None:
    with pytest.raises(ValueError, match=r"teacher_temperature \(0\.2\) has to be below temperature \(0\.1\)"):
        config("dino", teacher_temperature=0.2)


def test_deepcluster_assignments_are_of_the_previous_epoch() -> None:
    method: Any = initialized("deepclusterv2")
    bank = method.memory.clone()
    method.losses(views(method, step=0))
    for number, assigned in enumerate(method.assignments):
        nearest = (bank[number % 2] @ method.centroids[number].T).argmax(dim=1)
        assert torch.equal(assigned, nearest)
    held = method.assignments.clone()
    assert not torch.equal(method.memory[:, :8], bank[:, :8]), "the memory is updated"
    method.losses(views(method, step=1, index=torch.arange(8, 16)))
    assert torch.equal(method.assignments, held), "assignments are constant within an epoch"
    centres = method.centroids.clone()
    method.losses(views(method, step=2))
    assert not torch.equal(method.centroids, centres)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_random_masking_masks_exactly_its_share(share: float) -> None:
    tokens = torch.rand(3, 64, 8)
    visible, order = random_masking(tokens, share)
    assert visible.shape == (3, 64 - round(share * 64), 8)
    for number in range(3):
        assert torch.equal(visible[number], tokens[number, order[number, : visible.shape[1]]])
        assert sorted(order[number].tolist()) == list(range(64))
    assert len({tuple(each.tolist()) for each in order}) == 3, "drawn for each image"


def test_patchify_goes_row_by_row() -> None:
    images = torch.rand(2, 3, 8, 8)
    patches = patchify(images, 4)
    assert torch.equal(patches[1, 2].view(4, 4, 3), images[1, :, 4:, :4].permute(1, 2, 0))


@pytest.mark.parametrize(("size", "ratio"), [(16, 0.75), (16, 0.1)])
def test_mae_refuses_to_mask_nothing(size: int, ratio: float) -> None:
    with pytest.raises(ConfigError, match=rf"mask_ratio {ratio} of {(size // 16) ** 2} patches .* masks none"):
        make("mae", StageSetting(size, images=16, batch=8), mask_ratio=ratio)


def test_mae_refuses_backbones_other_than_plain_transformers() -> None:
    with pytest.raises(ConfigError, match=r"plain vision transformer, which 'test_resnet' is not: take vit_tiny"):
        config("mae").build_for_stage(backbone(), SETTING)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "mae"])
def test_methods_take_local_views_with_transformers(name: str) -> None:
    torch.manual_seed(0)
    stage = config(name)
    method = stage.build_for_stage(Backbone("test_vit", 32, IMAGENET), with_teacher(stage, SETTING)).train()
    with torch.no_grad():
        method.initialize(
            [(torch.arange(16), [torch.rand(16, 3, kind.size, kind.size) for kind in method.view_kinds()])]
        )
    assert torch.stack(list(method.losses(views(method, step=5)).values())).sum().isfinite()


def to_pixels(images: Tensor) -> Tensor:
    return (255 * images).byte()


@pytest.mark.parametrize("name", METHODS)
def test_method_losses_do_not_wait_for_the_device(name: str) -> None:
    """The first step of an epoch aside, in which DeepCluster clusters."""
    labelled = 2 if name in ("simclr", "mocov2", "swav", "deepclusterv2") else 0
    more: dict[str, Any] = {"labels": {"images": 4, "smoothing": 0.1}} if labelled else {}
    method = initialized(name, **more)
    method.losses(views(method, 1, labelled))
    objective = StageObjective(method, method.view_kinds())
    drawn = views(method, 1, labelled)
    batch = dataclasses.replace(
        drawn,
        unlabelled=[to_pixels(images) for images in drawn.unlabelled],
        labelled=None if drawn.labelled is None else to_pixels(drawn.labelled),
    )
    with no_values() as device:
        total, _ = objective.to(device)(move_to_device(batch, device), {"images": 1.0, "labelled": 1.0})
        total.backward()


@pytest.mark.parametrize("name", METHODS)
def test_stage_objective_communicates_if_the_method_compares_images(name: str) -> None:
    method = make(name)
    assert StageObjective(method, method.view_kinds()).communicates == (name not in ("byol", "mae", "pretext"))


def test_idempotent_buffers_of_methods_are_not_restored() -> None:
    """A second pass on the same images leaves them as the first did."""
    method = initialized("deepclusterv2")
    objective = StageObjective(method, method.view_kinds())
    restored = {buffer.data_ptr() for buffer in objective.restored_buffers()}
    assert method.get_buffer("memory").data_ptr() not in restored
    assert len(restored) == len(list(objective.buffers())) - len(method.idempotent_buffers)
    method.losses(views(method, step=2))
    first = {name: getattr(method, name).clone() for name in method.idempotent_buffers}
    method.losses(views(method, step=2))
    for name, tensor in first.items():
        torch.testing.assert_close(getattr(method, name), tensor, msg=name)
    for other in METHODS:
        assert other == "deepclusterv2" or not make(other).idempotent_buffers, other


def test_deepcluster_clusters_again_if_memory_ran_out_while_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    method = initialized("deepclusterv2")

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no more")

    with monkeypatch.context() as patched:
        patched.setattr("selfsup.deepclusterv2.spherical_kmeans", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            method.losses(views(method))
    assert int(method.get_buffer("epoch")) == -1
    method.losses(views(method))
    assert int(method.get_buffer("assignments").min()) >= 0
