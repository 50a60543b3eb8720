"""A typo in a recipe is told before torch, timm, Prefect or a file of a set is read; one in a stage needs torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name: typo
data: {kinds: {kind: imagefolder, path: not-there}}
teachers:
  kinds: {kind: supervised, task: classification, data: kinds, backbone: resnet18}
  net: {kind: pretrained, model: resnet18, weights: not-there.pth}
pool: [kinds]
student: {backbone: resnet18, loss_weights: {net: 1.0}}
stages: [{name: domain, method: simclr, data: [kinds]}]
evaluate: {probes: [knn]}
compare: {one: {data: [kinds], methods: {a: {method: simclr}}}}
"""
WITHOUT_STAGES = "".join(line for line in RECIPE.splitlines(keepends=True) if not line.startswith("stages"))
"""Stages load torch: their methods are networks."""
PROGRAM = """
import sys
from cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(*sorted({"torch", "timm", "prefect", "cli.console"} & set(sys.modules)), "loaded")
"""


def run_with_typo(command: str, recipe: str, folder: Path, typo: tuple[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command with a recipe in which a text is replaced; the last line names the slow modules it loaded."""
    assert typo[0] in recipe
    path = folder / "recipe.yaml"
    path.write_text(recipe.replace(*typo, 1), "utf-8")
    arguments = [sys.executable, "-c", PROGRAM, command, str(path), "--root", str(folder / "root")]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("pool:", "pol:", "pol: unknown key (value ['kinds']). Did you mean 'pool'?"),
        ("kind: imagefolder", "kind: imagefoldr", "data.kinds.kind: 'imagefoldr' is not a kind"),
        ("loss_weights: {net", "loss_weights: {nett", "student.loss_weights names 'nett'"),
        ("method: simclr, data", "method: simclrr, data", "stages.domain.method: 'simclrr' is not a method"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_typo_in_keys_and_kinds_is_told_without_torch(
    tmp_path: Path, before: str, after: str, says: str, command: str
) -> None:
    done = run_with_typo(command, RECIPE, tmp_path, (before, after))
    assert (done.returncode, done.stdout.strip()) == (2, "loaded"), done.stderr
    assert says in done.stderr


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("task: classification", "task: clasification", "teachers.kinds.task 'clasification' is unknown"),
        ("data: kinds, backbone: resnet18", "data: kinds, backbone: resnet81", "teachers.kinds: timm model 'resnet81'"),
        ("model: resnet18", "model: resnet18.a9", "teachers.net: timm model 'resnet18.a9' is unknown"),
        ("student: {backbone: resnet18", "student: {backbone: resnet81", "student: timm model 'resnet81' is unknown"),
        ("probes: [knn]", "probes: [kn]", "evaluate.probes: 'kn' is unknown. Did you mean 'knn'"),
        ("probes: [knn]", "starts: [studnt]", "evaluate.starts: start 'studnt' is unknown"),
        ("{data: [kinds], methods", "{data: [kind], methods", "compare.one.data: 'kind' is unknown"),
        ("{a: {method: simclr", "{a: {method: simclrr", "compare.one.methods.a.method: 'simclrr' is unknown"),
        (
            "methods: {a",
            "backbones: [resnet81], methods: {a",
            "compare.one.backbones: timm model 'resnet81' is unknown",
        ),
    ],
)
def test_typo_in_names_is_told_before_files_are_looked_for(tmp_path: Path, before: str, after: str, says: str) -> None:
    done = run_with_typo("plan", WITHOUT_STAGES, tmp_path, (before, after))
    assert (done.returncode, done.stdout.strip()) == (2, "loaded"), done.stderr
    assert says in done.stderr


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ("method: simclr, temprature: 0.2, data", "unknown key (value 0.2). Did you mean 'temperature'?"),
        ("method: simclr, temperature: -1, data", "stages.domain.temperature: input should be greater than 0"),
    ],
)
def test_typo_in_keys_of_a_method_is_told_without_timm(tmp_path: Path, after: str, says: str) -> None:
    done = run_with_typo("plan", RECIPE, tmp_path, ("method: simclr, data", after))
    assert (done.returncode, done.stdout.strip()) == (2, "torch loaded"), done.stderr
    assert says in done.stderr
