"""A typo in a recipe is told before torch, timm, Prefect or a file of a set is read; one in a stage needs torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

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
import contextlib, io, json, sys
from cli.main import main

for command, path in zip(sys.argv[2::2], sys.argv[3::2]):
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            code = main([command, path, "--root", sys.argv[1]])
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, errors.getvalue(), sorted({"torch", "timm", "prefect", "cli.console"} & set(sys.modules))]))
"""


class Typo(NamedTuple):
    """A text of the recipe, the one in its place, and what is said about that."""

    before: str
    after: str
    says: str


class Ended(NamedTuple):
    """How a command ended, and which of the slow modules were loaded by then."""

    code: int
    errors: str
    loaded: list[str]


KEYS_AND_KINDS = [
    Typo("pool:", "pol:", "pol: unknown key (value ['kinds']). Did you mean 'pool'?"),
    Typo("kind: imagefolder", "kind: imagefoldr", "data.kinds.kind: 'imagefoldr' is not a kind"),
    Typo("loss_weights: {net", "loss_weights: {nett", "student.loss_weights names 'nett'"),
    Typo("method: simclr, data", "method: simclrr, data", "stages.domain.method: 'simclrr' is not a method"),
]
NAMES = [
    Typo("task: classification", "task: clasification", "teachers.kinds.task 'clasification' is unknown"),
    Typo("data: kinds, backbone: resnet18", "data: kinds, backbone: resnet81", "teachers.kinds: timm model 'resnet81'"),
    Typo("model: resnet18", "model: resnet18.a9", "teachers.net: timm model 'resnet18.a9' is unknown"),
    Typo("student: {backbone: resnet18", "student: {backbone: resnet81", "student: timm model 'resnet81' is unknown"),
    Typo("probes: [knn]", "probes: [kn]", "evaluate.probes: 'kn' is unknown. Did you mean 'knn'"),
    Typo("probes: [knn]", "starts: [studnt]", "evaluate.starts: start 'studnt' is unknown"),
    Typo("{data: [kinds], methods", "{data: [kind], methods", "compare.one.data: 'kind' is unknown"),
    Typo("{a: {method: simclr", "{a: {method: simclrr", "compare.one.methods.a.method: 'simclrr' is unknown"),
    Typo(
        "methods: {a",
        "backbones: [resnet81], methods: {a",
        "compare.one.backbones: timm model 'resnet81' is unknown",
    ),
]
METHOD = "method: simclr, data"
KEYS_OF_METHODS = [
    Typo(METHOD, "method: simclr, temprature: 0.2, data", "unknown key (value 0.2). Did you mean 'temperature'?"),
    Typo(METHOD, "method: simclr, temperature: -1, data", "stages.domain.temperature: input should be greater than 0"),
]
COMMANDS = ("plan", "run")
CASES = [
    *((command, RECIPE, typo) for command in COMMANDS for typo in KEYS_AND_KINDS),
    *(("plan", WITHOUT_STAGES, typo) for typo in NAMES),
    *(("plan", RECIPE, typo) for typo in KEYS_OF_METHODS),
]
Endings = dict[tuple[str, Typo], Ended]


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> Endings:
    """Run every command in one process, those that load torch at the end: Python's start takes longer than they do."""
    folder, arguments = tmp_path_factory.mktemp("typos"), list[str]()
    for number, (command, recipe, typo) in enumerate(CASES):
        assert typo.before in recipe
        path = folder / f"{number}.yaml"
        path.write_text(recipe.replace(typo.before, typo.after, 1), "utf-8")
        arguments += [command, str(path)]
    program = [sys.executable, "-c", PROGRAM, str(folder / "root"), *arguments]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    found = [Ended(*json.loads(line)) for line in done.stdout.splitlines()]
    assert len(found) == len(CASES), done.stderr
    return {(command, typo): ended for (command, _, typo), ended in zip(CASES, found, strict=True)}


@pytest.mark.parametrize("typo", KEYS_AND_KINDS, ids=lambda typo: typo.after)
@pytest.mark.parametrize("command", COMMANDS)
def test_typo_in_keys_and_kinds_is_told_without_torch(command: str, typo: Typo, endings: Endings) -> None:
    ended = endings[command, typo]
    assert (ended.code, ended.loaded) == (2, []), ended.errors
    assert typo.says in ended.errors


@pytest.mark.parametrize("typo", NAMES, ids=lambda typo: typo.after)
def test_typo_in_names_is_told_before_files_are_looked_for(typo: Typo, endings: Endings) -> None:
    ended = endings["plan", typo]
    assert (ended.code, ended.loaded) == (2, []), ended.errors
    assert typo.says in ended.errors


@pytest.mark.parametrize("typo", KEYS_OF_METHODS, ids=lambda typo: typo.after)
def test_typo_in_keys_of_a_method_is_told_without_timm(typo: Typo, endings: Endings) -> None:
    ended = endings["plan", typo]
    assert (ended.code, ended.loaded) == (2, ["torch"]), ended.errors
    assert typo.says in ended.errors
