"""Every method, found by its file: what it wants to see, that it learns, and what it takes of its paper's promises."""

from __future__ import annotations

import dataclasses
import importlib
import re
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import normalize

from pipeline.errors import PROJECT, ConfigError
from pipeline.models.encoder import Encoder
from pipeline.recipe.stage import StageConfig, labelled_images
from pipeline.training.optimizer import build_optimizer
from selfsup.components.config import TAKE_LABELS
from selfsup.components.method import StageSetting, Views
from selfsup.mae import hide, to_patches
from selfsup.stages.budget import budget_of
from tests.selfsup.small import IMAGENET, MANY, METHODS, SETTING, backbone, begun, config, make, views

FAMILIES = {
    "simclr": "contrastive",
    "mocov2": "contrastive",
    "byol": "self-distillation",
    "dino": "self-distillation",
    "swav": "clustering",
    "deepclusterv2": "clustering",
    "mae": "masked",
}


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_own_keys_are_no_other_keys_of_a_stage(name: str) -> None:
    """Or a momentum of its own would be the optimiser's."""
    own = importlib.import_module(f"selfsup.{name}").Config.__annotations__.keys() - {"method"}
    assert not own & StageConfig.model_fields.keys()


def test_the_methods_are_those_of_the_papers() -> None:
    assert {name: make(name).family for name in METHODS} == FAMILIES


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_falls_on_one_batch(name: str) -> None:
    still: dict[str, Any] = (
        {"teacher_momentum": 1.0, "center_momentum": 1.0} if name == "dino" else {}
    )  # or what is to be foretold moves on
    method = begun(name, **still)
    optimizer = torch.optim.AdamW([one for one in method.parameters() if one.requires_grad], lr=3e-3, weight_decay=0)
    found = []
    for step in range(30):
        torch.manual_seed(0)
        batch = views(method)
        batch = Views(batch.unlabelled, batch.index, None, None, min(step, 9), MANY, 0)
        loss = torch.stack(list(method.losses(batch).values())).sum()
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert min(found[-5:]) < found[1] - 0.02 * abs(found[1]), found


@pytest.mark.parametrize("name", METHODS)
def test_every_trainable_part_has_a_gradient_and_the_state_is_whole(name: str) -> None:
    method = begun(name)
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
@pytest.mark.parametrize("labels", ["suncet", "supcon"])
def test_labels_go_beside_what_contrasts_or_clusters(name: str, labels: str) -> None:
    told = {"method": labels, "images": 4}
    if FAMILIES[name] not in TAKE_LABELS:
        with pytest.raises(ConfigError, match=f"labels: '{name}' takes no labelled images"):
            make(name, labels=told)
        return
    method = begun(name, labels=told)
    both, alone = method.losses(views(method, labelled=2)), method.losses(views(method))
    assert both.keys() - alone.keys() == {labels}
    both[labels].backward()
    assert any(one.grad is not None for one in method.backbone.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_with_norms_alone_nothing_else_of_the_backbone_moves(name: str) -> None:
    """HPT-BN: weights stay bit for bit; every scale, shift and running statistic changes, and so does all the head."""
    method = begun(name, trainable="norm")
    encoder = method.backbone
    norms = {id(one) for norm in encoder.norms() for one in norm.parameters()}
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
def test_with_norms_alone_the_optimiser_holds_them_before_anything_is_set_to_training(name: str) -> None:
    """Gradients that only `train()` switched on would come too late for it."""
    stage, encoder = config(name, trainable="norm"), backbone(name).eval()
    method = stage.on(encoder, SETTING).eval()
    held = {id(one) for group in build_optimizer(method, stage).param_groups for one in group["params"]}
    norms = {part for part, kind in encoder.model.named_modules() if "Norm" in type(kind).__name__}
    there = {part for part, one in encoder.model.named_parameters() if id(one) in held}
    assert there == {f"{part}.{what}" for part in norms for what in ("weight", "bias")}
    assert {id(one) for part in method.children() if part is not encoder for one in part.parameters()} & held


def test_with_norms_alone_a_resnet50_trains_scale_and_shift_of_26560_channels() -> None:
    with torch.device("meta"):
        encoder = Encoder("resnet50", 224, IMAGENET)
        config("mocov2", trainable="norm").on(encoder, SETTING)
    assert sum(one.numel() for one in encoder.parameters() if one.requires_grad) == 2 * 26_560


@pytest.mark.parametrize(
    ("name", "part", "key"),
    [
        ("mocov2", "keys", "key_momentum"),
        ("byol", "target", "target_momentum"),
        ("dino", "teacher", "teacher_momentum"),
    ],
)
def test_a_follower_is_a_copy_first_and_then_an_exact_average(name: str, part: str, key: str) -> None:
    momentum: dict[str, Any] = {key: 0.9}
    method = begun(name, **momentum)
    follower: Any = getattr(method, part)
    head: Any = method.head
    leader = [*method.backbone.parameters(), *head.parameters()]
    for mine, theirs in zip(follower.network.parameters(), leader, strict=True):
        assert torch.equal(mine, theirs)
        assert not mine.requires_grad
    with torch.no_grad():
        for one in leader:
            one.add_(1)
    expected = [0.9 * mine + 0.1 * theirs for mine, theirs in zip(follower.network.parameters(), leader, strict=True)]
    first = views(method, step=0)
    method.losses(first)
    found = list(follower.network.parameters())
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted)
    held = [one.clone() for one in found]
    method.losses(first)
    assert all(torch.equal(one, before) for one, before in zip(found, held, strict=True)), "once a step"


def test_mocos_queue_is_first_in_first_out() -> None:
    method: Any = make("mocov2", queue=16)
    torch.testing.assert_close(method.queue.norm(dim=1), torch.ones(16))
    before = method.queue.clone()
    method.losses(views(method, step=0))
    assert torch.equal(method.queue[8:], before[8:])
    first = method.queue[:8].clone()
    assert not torch.equal(first, before[:8])
    method.losses(views(method, step=1))
    assert torch.equal(method.queue[:8], first)
    assert int(method.place) == 0, "it wraps around"
    method.losses(views(method, step=2))
    assert not torch.equal(method.queue[:8], first)


@pytest.mark.parametrize("length", [4, 8, 12, 20])
def test_mocos_queue_forgets_the_oldest_first_and_none_before_its_time(length: int) -> None:
    """Whether or not its length is a multiple of the batch, which is eight."""
    method: Any = make("mocov2", queue=length)
    known = {-1: method.queue.clone()}
    for step in range(5):
        method.losses(views(method, step, index=torch.arange(8 * step, 8 * step + 8)))
        oldest_first = (method.place + torch.arange(length)) % length
        owners = method.owners[oldest_first].tolist()
        assert owners == [*[-1] * length, *range(8 * step + 8)][-length:]
        rows = dict(zip(owners, method.queue[oldest_first], strict=True))
        assert all(torch.equal(row, known[owner]) for owner, row in rows.items() if 0 <= owner < 8 * step)
        known |= rows


@pytest.mark.parametrize(("images", "batch", "length"), [(100, 8, 96), (5, 8, 8), (1_281_167, 256, 65_536)])
def test_mocos_queue_is_made_for_whole_batches(images: int, batch: int, length: int) -> None:
    with torch.device("meta"):
        method: Any = config("mocov2").on(backbone(), StageSetting(size=32, images=images, batch=batch))
    assert len(method.queue) == len(method.owners) == length
    assert length % batch == 0


def test_mocos_own_keys_of_an_epoch_ago_are_no_negatives() -> None:
    method: Any = make("mocov2", queue=16)
    method.losses(views(method, step=0))
    assert method.owners.tolist() == [*range(8), *[-1] * 8]
    method.queue[:8] = torch.nan  # whoever looks at one of these finds out
    order = torch.arange(8).flip(0)
    alone = Views(*[getattr(views(method, step=1, index=order), field.name) for field in dataclasses.fields(Views)])
    assert method.losses(alone)["mocov2"].isnan(), "other images' keys are"
    method.owners.fill_(3)
    method.queue.copy_(normalize(torch.randn(16, 128), dim=1))
    same = views(method, step=2, index=torch.full((8,), 3))
    assert method.losses(same)["mocov2"].item() == pytest.approx(0, abs=1e-6), "nothing is left but its own key"


@pytest.mark.parametrize("name", [name for name in METHODS if make(name).compares])
def test_a_batch_that_is_compared_is_not_cut(name: str) -> None:
    with pytest.raises(ConfigError, match=f"accumulate is 2, but '{name}' compares the images of a batch"):
        make(name, accumulate=2)
    assert not make("byol", accumulate=2).compares


def test_views_that_a_backbone_cannot_take_are_told_before_a_run() -> None:
    told = config("dino", start="scratch", backbone="vit_tiny_patch16_224", image_size=32)
    told.check()
    with pytest.raises(
        ConfigError, match=r"'dino' shows the backbone views of \d+ x \d+ pixels, which 'mixer_s16_224'"
    ):
        config("dino", start="scratch", backbone="mixer_s16_224", image_size=224).check()


def test_the_width_is_what_comes_out() -> None:
    assert Encoder("mobilenetv3_small_050", 32, IMAGENET).width == 1024


def test_dinos_centre_follows_the_teachers_mean() -> None:
    method: Any = make("dino", center_momentum=0.5)
    batch = views(method, step=0)
    said = method.teacher(torch.cat(batch.unlabelled[:2])).mean(dim=0)
    method.center.fill_(1.0)
    method.losses(batch)
    torch.testing.assert_close(method.center, 0.5 + 0.5 * said, atol=1e-5, rtol=1e-4)


def test_a_teacher_is_surer_than_its_student() -> None:
    with pytest.raises(ValueError, match=r"teacher_temperature \(0\.2\) has to be below temperature \(0\.1\)"):
        config("dino", teacher_temperature=0.2)


def test_deepclusters_classes_are_those_of_the_epoch_before() -> None:
    method: Any = begun("deepclusterv2")
    bank = method.bank.clone()
    method.losses(views(method, step=0))
    for number, assigned in enumerate(method.assigned):
        nearest = (bank[number % 2] @ method.centres[number].T).argmax(dim=1)
        assert torch.equal(assigned, nearest)
    held = method.assigned.clone()
    assert not torch.equal(method.bank[:, :8], bank[:, :8]), "what is seen is remembered"
    method.losses(views(method, step=1, index=torch.arange(8, 16)))
    assert torch.equal(method.assigned, held), "not before the epoch is over"
    centres = method.centres.clone()
    method.losses(views(method, step=2))
    assert not torch.equal(method.centres, centres)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_mae_hides_exactly_its_share(share: float) -> None:
    tokens = torch.rand(3, 64, 8)
    visible, order = hide(tokens, share)
    assert visible.shape == (3, 64 - round(share * 64), 8)
    for number in range(3):
        assert torch.equal(visible[number], tokens[number, order[number, : visible.shape[1]]])
        assert sorted(order[number].tolist()) == list(range(64))
    assert len({tuple(each.tolist()) for each in order}) == 3, "each image its own"


def test_patches_are_the_image_row_by_row() -> None:
    images = torch.rand(2, 3, 8, 8)
    patches = to_patches(images, 4)
    assert torch.equal(patches[1, 2].view(4, 4, 3), images[1, :, 4:, :4].permute(1, 2, 0))


def test_mae_says_which_backbones_it_can_use() -> None:
    with pytest.raises(ConfigError, match=r"plain vision transformer, which 'test_resnet' is not: take vit_tiny"):
        config("mae").on(backbone(), SETTING)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "mae"])
def test_transformers_see_small_views_as_well(name: str) -> None:
    torch.manual_seed(0)
    method = config(name).on(Encoder("test_vit", 32, IMAGENET), SETTING).train()
    with torch.no_grad():
        method.begin([(torch.arange(16), [torch.rand(16, 3, kind.size, kind.size) for kind in method.kinds()])])
    assert torch.stack(list(method.losses(views(method, step=5)).values())).sum().isfinite()


LINES = re.findall(r"`(\{method: [^`]*\})`", (PROJECT / "docs" / "how-to" / "stages.md").read_text("utf-8"))
PUBLISHED = [yaml.safe_load(line) for line in LINES]


@pytest.mark.parametrize("settings", PUBLISHED, ids=lambda settings: settings["method"])
def test_published_settings_in_the_docs_are_recipe_lines(settings: dict[str, Any]) -> None:
    published = {"name": "stage", "data": ["pool"], "start": "scratch", "backbone": "resnet50", **settings}
    stage = importlib.import_module(f"selfsup.{settings['method']}").Config.model_validate(published)
    stage.check()
    if stage.labels:
        labelled = labelled_images(stage, [str(number) for number in range(1000)])
        budget = budget_of(stage, labelled, 1_281_167)
        assert (labelled, budget.plain(0), 2 * budget.plain(0) + labelled) == (2560, 2816, 8192), (
            "SuNCEt's, of ImageNet"
        )


def test_the_docs_have_published_settings() -> None:
    assert [each["method"] for each in PUBLISHED] == ["mocov2", "byol", "simclr", "simclr", "swav"]
