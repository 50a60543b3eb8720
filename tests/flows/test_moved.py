"""A set that is reached by another path is known by its bytes: its shards, labels and networks stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import must
from cli.main import main
from flows.plan.selection import Selection
from flows.plan.steps import build_steps
from pipeline.models.timm_models import create_timm_model
from pipeline.recipe.reader import read_recipe
from pipeline.steps.artifact import fingerprint
from tests.flows.tiny import RECIPE
from tests.ingest.photos import add_image

FOLDER = "  pool: {kind: folder, path: photos}"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's folder with a set in files and a recipe that names it by a relative path."""
    folder = tmp_path / "project"
    (folder / "photos").mkdir(parents=True)
    for number in range(6):
        add_image(folder / "photos", f"{number}.png", number)
    lines = [FOLDER if line.startswith("  pool: {kind") else line for line in RECIPE.splitlines()]
    assert FOLDER in lines
    (folder / "tiny.yaml").write_text("\n".join(lines), "utf-8")
    return folder


def test_set_that_is_moved_or_spelled_otherwise_is_not_packed_and_labelled_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, root = Selection("label"), project / "root"
    monkeypatch.chdir(project)
    first = must.run("tiny.yaml", root, steps=last)
    monkeypatch.chdir("/")
    assert must.run(project / "tiny.yaml", root, steps=last).ran == 0, "started from another folder"
    link = project.parent / "mount"
    link.symlink_to(project)
    through = must.run(link / "tiny.yaml", root, steps=last)
    assert through.ran == 1, "the set is read by another path, and nothing else is done"
    (project / "photos").rename(project / "moved")
    moved = must.run(project / "tiny.yaml", root, [f"data.pool.path={project / 'moved'}"], last)
    assert moved.ran == 1
    for outcome in (through, moved):
        before, now = first.artifacts["data.pool"], outcome.artifacts["data.pool"]
        assert now.digest == before.digest
        assert now.counts["read_now"] == 6, "bytes are compared, as names and times could be those of other images"
        assert outcome.artifacts["label"].fingerprint == first.artifacts["label"].fingerprint


def test_weights_that_are_moved_are_the_same(tmp_path: Path) -> None:
    """What they hold is in the fingerprint, and not where they lie."""
    torch.manual_seed(0)
    weights, steps = create_timm_model("test_resnet", 32).state_dict(), []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        save_file(weights, tmp_path / folder / "w.safetensors")
        text = RECIPE
        for section in ("student: {", "masks: {"):
            text = text.replace(section, f"{section}weights: w.safetensors, ")
        (tmp_path / folder / "tiny.yaml").write_text(text, "utf-8")
        steps.append({step.name: step for step in build_steps(read_recipe(tmp_path / folder / "tiny.yaml"))})
    for name in ("teacher.masks", "student"):
        here, there = (each[name] for each in steps)
        digests = {other: other for other in here.inputs}
        assert here.config != there.config
        assert fingerprint(here, digests) == fingerprint(there, digests)


def test_init_in_another_folder_writes_paths_that_work(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(SystemExit) as ended:
        main(["init", "photos", "--to", "deep/er/recipe.yaml"])
    assert not ended.value.code
    text = (project / "deep/er/recipe.yaml").read_text("utf-8")
    assert 'path: "../../photos"' in text
    teacher = ["teachers={gabor: {kind: analytic, image_size: 32, wavelengths: [4.0]}}"]
    monkeypatch.chdir("/")
    planned = must.plan(project / "deep/er/recipe.yaml", project / "root", [*teacher, "student.weighting=equal"])
    assert [each.step.name for each in planned][:3] == ["data.photos", "pool", "teacher.gabor"]
