"""Test the steps of comparisons: methods crossed with starts and settings, and what a run of them leaves."""

from __future__ import annotations

import collections
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import must
from cli.main import main
from evaluation.backbone_table import MetricColumn
from evaluation.comparison import supervised_baseline
from evaluation.comparison.comparison import ComparisonSetting, read_comparisons
from flows.plan.selection import Selection
from flows.run.run import Outcome
from ingest.pool import pool_keys
from pipeline.errors import ConfigError
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from selfsup.stages.step import load_images, stage_config
from tests.evaluation.measuring import Record, keys_of, records_of
from tests.flows.measured import MEASURED, steps_of
from tests.flows.tiny import TRAIN_STEPS

LAST = Selection("compare")
TWO = "simclr: {method: simclr, hidden: 32}, byol: {method: byol, hidden: 32}"
CROSSED = """
compare: {all: {data: [kinds, pool], methods: {simclr: {method: simclr}, mocov2: {method: mocov2, lr: 0.1}}, seeds: 3,
  starts: [student, scratch], backbones: [test_resnet, resnet18], shares: [0.25, 1.0], steps: [10, 20], batch: 8}}
"""
SMALL = """
compare: {all: {data: [kinds], methods: {simclr: {method: simclr}}, steps: [1, 2], batch: 4, seeds: 1, probes: [knn],
  labels: [6, all]}}
"""
VARIED = ("start", "backbone", "share", "steps")
"""Keys in which the stages of a method may differ."""
PAIRS = [("student", "test_resnet"), ("scratch", "test_resnet"), ("scratch", "resnet18")]


def trials_of(section: str) -> list[dict[str, Any]]:
    """Return the rows that are measured, one per seed."""
    return [step.config["trial"] for step in steps_of(section).values() if "trial" in step.config]


def test_comparison_steps_cross_everything_with_everything() -> None:
    """Each method is crossed with each start, backbone, share, number of steps and seed."""
    found = collections.Counter(tuple(trial.values()) for trial in trials_of(CROSSED))
    methods = ("supervised", "simclr", "mocov2")
    crossed = itertools.product(methods, PAIRS, (0.25, 1.0), (10, 20), range(3))
    wanted: list[tuple[Any, ...]] = [(method, *pair, *rest) for method, pair, *rest in crossed]
    wanted += [("none", *pair, None, None, seed) for pair in PAIRS for seed in range(3)]
    assert found == collections.Counter(wanted)


def test_comparison_steps_have_scratch_student_and_supervised_rows() -> None:
    rows = {(trial["method"], trial["start"]) for trial in trials_of(SMALL)}
    assert rows == {("none", "scratch"), ("none", "student"), ("supervised", "student"), ("simclr", "student")}
    elsewhere = SMALL.replace("data: [kinds]", "data: [pool], set: kinds")
    rows = {(trial["method"], trial["start"]) for trial in trials_of(elsewhere)}
    assert ("supervised", "student") not in rows, "the images have no labels to be supervised by"


def test_comparison_steps_from_scratch_alone_need_no_student() -> None:
    alone = SMALL.replace("probes", "starts: [scratch], probes")
    assert not [
        name for name, step in steps_of(alone).items() if name.startswith("compare.") and "student" in step.inputs
    ]
    rows = {(trial["method"], trial["start"]) for trial in trials_of(alone)}
    assert rows == {("none", "scratch"), ("supervised", "scratch"), ("simclr", "scratch")}


def test_comparison_steps_train_and_measure_all_methods_alike() -> None:
    steps = steps_of(CROSSED)
    stages = [step for step in steps.values() if "stage" in step.config]
    assert len(stages) == 2 * 3 * 2 * 2 * 3
    assert all("pool.compare_all" in step.inputs for step in stages)
    for method in ("simclr", "mocov2"):
        mine = [step.config["stage"] for step in stages if step.config["stage"]["method"] == method]
        rest = [{key: value for key, value in stage.items() if key not in VARIED} for stage in mine]
        assert all(each == rest[0] for each in rest)
        assert (rest[0]["batch"], rest[0]["data"]) == (8, ["kinds", "pool"])
    probes = [step for step in steps.values() if step.kind.name == "compare_probe"]
    common = ("set", "splits", "probes", "labels", "seeds", "corruptions")
    assert len({json.dumps({key: step.config[key] for key in common}) for step in probes}) == 1
    assert {step.config["seed"] for step in probes} == {0, 1, 2}
    for step in probes:
        assert step.config["trial"]["seed"] == step.config["seed"], "a row's labels are drawn by its own seed"


def test_comparison_steps_have_the_same_long_tail_for_all_rows() -> None:
    tail = CROSSED.replace("seeds: 3", "seeds: 3, long_tail: 0.1").replace("[kinds, pool]", "[kinds]")
    steps = steps_of(tail)
    assert steps["pool.compare_all"].config == {"pool": ["kinds"], "long_tail": 0.1, "seed": 0}
    trained = [step for step in steps.values() if step.name.startswith("compare.") and "trial" not in step.config]
    assert len(trained) > 10
    assert all("pool.compare_all" in step.inputs for step in trained), "supervised training as well"
    assert steps_of(CROSSED)["pool.compare_all"].config == {"pool": ["kinds", "pool"]}


def test_comparison_steps_give_a_methods_settings_to_it_alone() -> None:
    stages = [step.config["stage"] for step in steps_of(CROSSED).values() if "stage" in step.config]
    assert {stage["lr"] for stage in stages if stage["method"] == "mocov2"} == {0.1}
    assert 0.1 not in {stage["lr"] for stage in stages if stage["method"] == "simclr"}


def test_comparison_steps_start_from_weights_and_stages(tmp_path: Path) -> None:
    stages = "stages: [{name: one, method: simclr, data: [pool], batch: 4, steps: 1}]"
    steps = steps_of(stages + SMALL.replace("probes", "starts: [stage.one], probes"))
    assert steps["compare.all.simclr.stage.one.test_resnet.share1.steps1.seed0"].inputs[0] == "stage.one"


def test_comparison_steps_leave_out_backbones_a_method_is_not_for() -> None:
    rows = {
        (trial["method"], trial["backbone"])
        for trial in trials_of(CROSSED.replace("lr: 0.1", "lr: 0.1, backbones: [resnet18]"))
    }
    assert ("simclr", "test_resnet") in rows
    assert ("mocov2", "resnet18") in rows
    assert ("mocov2", "test_resnet") not in rows


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("[resnet81]", r"compare\.all\.methods\.mocov2\.backbones: 'resnet81' is unknown\. Did you mean 'resnet18'\? "),
        ("[resnet18, test_resnt]", r"backbones: 'test_resnt' .* Known: resnet18, test_resnet\."),
        ("resnet18d", r"methods\.mocov2\.backbones is 'resnet18d': write a list of timm models, as in \[resnet18\]"),
        ("3", r"methods\.mocov2\.backbones is 3: write a list"),
        ("[]", r"methods\.mocov2\.backbones is \[\]: write a list"),
        ("[7]", r"methods\.mocov2\.backbones is \[7\]: write a list"),
        ("null", r"methods\.mocov2\.backbones is None: write a list"),
    ],
)
def test_comparison_refuses_backbones_of_a_method_that_it_does_not_have(said: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        steps_of(CROSSED.replace("lr: 0.1", f"lr: 0.1, backbones: {said}"))


def test_comparison_refuses_a_method_without_a_backbone() -> None:
    said = CROSSED.replace("lr: 0.1", "lr: 0.1, backbones: [resnet18]").replace("[student, scratch]", "[student]")
    says = r"mocov2\.backbones is \['resnet18'\], but no start has one of these: starts are"
    with pytest.raises(ConfigError, match=says):
        steps_of(said)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("method: simclr", "method: simcl", r"compare\.all\.methods\.simclr\.method: 'simcl' .*Did you mean 'simclr'"),
        (
            "method: simclr",
            "method: simclr, temprature: 7",
            r"methods\.simclr\.temprature: unknown key \(value 7\)\. Did you mean .temperature.",
        ),
        ("method: simclr", "method: simclr, steps: 7", r"methods\.simclr\.steps: all methods have it in common"),
        ("method: simclr", "method: simclr, data: [pool]", r"methods\.simclr\.data: all methods have it in common"),
        ("method: simclr", "lr: 0.1", r"methods\.simclr names no method: write \{method: simclr\}"),
        ("{simclr: {", "{none: {", r"'none' is a row of every comparison; call the method another name"),
        ("{simclr: {", "{supervised: {", r"'supervised' is a row of every comparison"),
        ("seeds: 1", "seeds: 1, supervised: {steps: 7}", r"supervised\.steps: all rows have it in common"),
        ("seeds: 1", "seeds: 1, supervised: {lr: high}", r"compare\.all\.supervised\.lr: .*\(value 'high'\)"),
        ("data: [kinds]", "data: [kind]", r"compare\.all\.data: 'kind' is unknown\. Did you mean 'kinds'"),
        ("data: [kinds]", "data: [pool], set: kids", r"compare\.all\.set: 'kids' is unknown\. Did you mean 'kinds'"),
        (
            "data: [kinds]",
            "data: [world]",
            r"compare\.all\.probes names 'knn', but world has no labels that it learns from",
        ),
        ("probes: [knn]", "probes: []", r"neither probes nor finetune are asked for"),
        ("probes: [knn]", "probes: [kn]", r"compare\.all\.probes: 'kn' is unknown\. Did you mean 'knn'"),
        ("probes: [knn]", "schedule: quik", r"compare\.all\.schedule: 'quik' is unknown\. Did you mean 'quick'"),
        ("steps: [1, 2]", "steps: [2, 2]", r"steps: 2 is there twice"),
        (
            "steps: [1, 2]",
            "starts: [studnt]",
            r"compare\.all\.starts: start 'studnt' is unknown\. Did you mean 'student'",
        ),
    ],
)
def test_comparison_refuses_what_cannot_be_compared(old: str, new: str, says: str) -> None:
    assert old in SMALL
    with pytest.raises(ConfigError, match=says):
        steps_of(SMALL.replace(old, new))


def written(path: Path, section: str) -> Path:
    path.write_text(MEASURED + section, encoding="utf-8")
    return path


def test_comparison_refuses_a_backbone_and_names_those_that_a_method_can_use(tmp_path: Path) -> None:
    recipe = written(tmp_path / "mae.yaml", SMALL.replace("simclr: {method: simclr}", "mae: {method: mae}"))
    with pytest.raises(
        ConfigError, match=r"compare\.all\.methods\.mae on test_resnet: .* vision transformer.*'test_resnet'"
    ):
        must.run(recipe, tmp_path / "root", steps=LAST)
    assert not (tmp_path / "root" / "artifacts").exists()


def test_compare_without_a_section_is_refused(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["compare", str(recipe), "--root", str(tmp_path / "root")])
    assert end.value.code == 2
    assert "has no section `compare`. Add one, for example compare:" in capsys.readouterr().err


# A run of it


@pytest.fixture(scope="module")
def root(finished_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the whole run's root, for a comparison."""
    return Path(shutil.copytree(finished_root, tmp_path_factory.mktemp("compared") / "root"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("recipe") / "small.yaml", SMALL)


@pytest.fixture(scope="module")
def compared(root: Path, small: Path) -> Outcome:
    return must.run(small, root, steps=LAST)


@pytest.fixture(scope="module")
def page(compared: Outcome) -> str:
    assert compared.folder
    return (compared.folder / "report.html").read().decode()


ROWS = {"from scratch", "the student, no stage", "supervised on the same images, from student", "simclr, from student"}


def made_by(outcome: Outcome, kind: str) -> dict[str, Artifact]:
    return {name: made for name, made in outcome.artifacts.items() if made.kind == kind}


def test_run_without_compare_makes_no_comparison_steps(small: Path, root: Path) -> None:
    names = [each.step.name for each in must.plan(small, root)]
    assert not [name for name in names if "compare" in name]
    assert "evaluate" in names
    compares = [each.step.name for each in must.plan(small, root, steps=LAST)]
    assert "pool.compare_all" in compares
    assert sum(name.endswith(".probe") for name in compares) == 6
    assert "evaluate" not in compares


def test_comparison_is_reused_with_its_report(compared: Outcome, small: Path, root: Path) -> None:
    assert compared.ran > 0
    again = must.run(small, root, steps=LAST)
    assert (again.ran, again.folder) == (0, compared.folder)


def test_comparison_with_another_seed_makes_its_steps_alone(compared: Outcome, small: Path, root: Path) -> None:
    todo = [each.step.name for each in must.plan(small, root, ["compare.all.seeds=2"], LAST) if each.artifact is None]
    assert todo
    assert all(".seed1" in name for name in todo)
    assert len(todo) == 6 + 4
    longer = [
        each.step.name for each in must.plan(small, root, ["compare.all.steps=[1, 2, 3]"], LAST) if not each.artifact
    ]
    assert all("steps3" in name for name in longer)
    assert len(longer) == 4


def test_comparison_records_say_how_they_were_measured(compared: Outcome) -> None:
    assert compared.folder
    probes = made_by(compared, "compare_probe")
    records: list[Record] = [record for made in probes.values() for record in records_of(made)]
    assert len(records) == 6 * 2
    for record in records:
        assert (record["protocol"], record["n"], record["seed"], record["split"]) == ("knn v1", 5, 0, "test")
        assert record["asked"] in (6, "all")
    kept = json.loads((compared.folder / "measured.json").read())
    rows = {json.dumps(record.pop("trial")) for record in kept}
    assert len(rows) == len(probes), "whose number it is"
    assert {record.pop("comparison") for record in kept} == {"all"}
    trained = {record["start"].partition(".")[0] for record in kept if record.pop("trained_on_labels", False)}
    assert trained == {"supervised"}, "its row learned the labels that it is measured on"
    assert sorted(map(json.dumps, kept)) == sorted(map(json.dumps, records))


def test_comparison_methods_see_the_same_images(
    compared: Outcome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Images depend on seed and share only; those of a smaller share are part of a larger one's."""
    seen: dict[tuple[float, str], set[str]] = {}
    runtime = Runtime(Root.of(tmp_path), "cpu", "32", 1)
    trained = {"simclr": "compare_method", "supervised": "compare_supervised"}
    for share, (method, kind) in itertools.product((0.5, 1.0), trained.items()):
        made = next(iter(made_by(compared, kind).values()))
        config = json.loads(json.dumps(dict(made.manifest["config"])))
        inputs = Inputs({name: compared.artifacts[name] for name in made.manifest["inputs"]}, runtime)
        if method == "simclr":
            stage = stage_config(config["stage"] | {"share": share})
            seen[share, method] = keys_of(load_images(stage, inputs, config["seed"]))
        else:
            told: list[Any] = []
            monkeypatch.setattr(
                supervised_baseline, "train_network", lambda *given, told=told: told.append(given) or Nothing()
            )
            supervised_baseline.train(config | {"share": share}, inputs, tmp_path)
            seen[share, method] = keys_of(told[0][2])
    assert seen[0.5, "simclr"] == seen[0.5, "supervised"]
    assert seen[1.0, "simclr"] == seen[1.0, "supervised"]
    assert seen[0.5, "simclr"] < seen[1.0, "simclr"]
    assert (len(seen[0.5, "simclr"]), len(seen[1.0, "simclr"])) == (6, 12)


class Nothing:
    """A training result without counts."""

    def counts(self) -> dict[str, Any]:
        return {}


def test_comparison_shares_are_nested_and_seeds_draw_their_own(compared: Outcome) -> None:
    pool = compared.artifacts["pool.compare_all"]
    drawn = [pool_keys(pool, share, 0) for share in (0.25, 0.5, 0.75, 1.0)]
    assert [len(keys) for keys in drawn] == [3, 6, 9, 12]
    assert all(few < more for few, more in itertools.pairwise(drawn))
    assert pool_keys(pool, 0.5, 0) == drawn[1]
    assert any(pool_keys(pool, 0.5, seed) != drawn[1] for seed in (1, 2))


def test_read_comparisons_of_a_run_has_every_row(compared: Outcome) -> None:
    [found] = read_comparisons(compared.artifacts).values()
    assert {row.name for row in found.rows} == ROWS
    assert found.settings() == [ComparisonSetting("test_resnet", 1.0, 1), ComparisonSetting("test_resnet", 1.0, 2)]
    assert list(found.columns) == [
        MetricColumn("knn v1", 6, "accuracy", "none"),
        MetricColumn("knn v1", 12, "accuracy", "none"),
    ]
    assert (found.dataset_split, found.n) == ("kinds/test", 5)
    for setting in found.settings():
        assert {row.name for row in found.rows_in(setting)} == ROWS
    costs = {(row.name, row.setting.steps): (row.cost.steps, row.cost.images) for row in found.rows}
    for name in ROWS:
        trained = "simclr" in name or "supervised" in name
        for steps in (1, 2) if trained else (None,):
            assert costs[name, steps] == ((steps, 4 * steps) if steps else (0, 0))
    assert found.start_costs["student"].steps == 2 * TRAIN_STEPS, "the student's own steps and its teacher's"
    assert "scratch" not in found.start_costs


def test_comparisons_section_has_table_advice_plot_and_cost(page: str) -> None:
    part = page.split('id="comparisons"')[1].split("</section>", maxsplit=1)[0]
    assert "could not be shown" not in page
    assert "fewer than 3 seeds support no advice" in part
    assert "What it takes to reach" not in part, "nothing was trained from scratch"
    assert part.count("<svg") > 0
    assert 'aria-label="test_resnet, 100% of the images: accuracy by knn v1, 6 labels"' in part
    [table] = part.split("<table>")[1:]
    for name in ROWS:
        assert f">{name}{' †' * name.startswith('supervised')}<" in table
    assert table.count("<tr>") == 1 + 6
    assert "nearest neighbours by cosine" in part, "the protocol is told"


def command(*arguments: object) -> None:
    """Run the command and check that it succeeds."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == 0


def test_compare_command_shows_rows_and_advice(
    compared: Outcome, small: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("compare", small, "--root", root)
    out = " ".join(capsys.readouterr().out.split())
    assert "Nothing to do" in out
    assert "simclr" in out
    assert "support no advice" in out
    assert "Report:" in out
    command("compare", small, "all", "--root", root, "--plan")
    assert "Nothing to train or measure." in capsys.readouterr().out


def test_comparison_plan_has_a_line_for_every_row(
    compared: Outcome, small: Path, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    asked = ["compare", small, "--root", root, "--plan", "-o", "compare.all.seeds=3", "-o", "compare.all.steps=[1,7]"]
    command(*asked)
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.partition("compare.all:")[2].splitlines()]
    assert "from scratch test_resnet - - 2 of 3 never made here" in lines
    assert "simclr, from student test_resnet 100% 1 2 of 3 never made here" in lines
    assert "simclr, from student test_resnet 100% 7 3 of 3 never made here" in lines
    # of two methods with 1 and 7 steps, the first seed with 1 is there; beside them two rows without a training
    assert "To run: 10 trainings of 46 steps in all, and 14 measurements." in lines
    assert "waits" not in out.partition("compare.all:")[2]


def test_comparison_without_held_out_images_is_refused_with_that_reason(root: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "none.yaml"
    text = (MEASURED + SMALL).replace("val: 3, test: 5, seed: 3", "seed: 3").replace("steps: [1, 2]", "steps: [1]")
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="the set 'kinds' can't be measured on: no held-out image has a label"):
        must.run(recipe, shutil.copytree(root, tmp_path / "root"), steps=LAST)
