"""Test the steps that measure backbones: which a recipe plans, what they start from, and what a run of them leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import must
from evaluation import corruptions
from evaluation.schedules import SCHEDULES
from flows.plan.evaluation_steps import SHARED_KEYS, finetune_config, measurement_settings, probe_config
from flows.plan.resolve import resolve
from flows.plan.selection import Selection
from flows.plan.steps import build_steps
from flows.run.run import Outcome
from pipeline.data import sampling
from pipeline.errors import ConfigError
from pipeline.recipe.comparison import CompareConfig
from pipeline.recipe.evaluation import EvaluateConfig, StartConfig
from pipeline.recipe.reader import parse_recipe
from pipeline.recipe.teacher import TeacherConfig
from pipeline.steps.artifact import Step, write_json
from tests.evaluation.measuring import Record, records_of
from tests.flows.measured import MEASURED, TINY, recipe_of, steps_of
from tests.flows.tiny import STEPS, TRAIN_STEPS

ASKED = "evaluate: {probes: [knn], finetune: [kinds], schedule: tiny, starts: [scratch, student, teacher.masks]}\n"
MADE = [f"{kind}.{start}.kinds" for start in ("scratch", "student", "teacher.masks") for kind in ("probe", "finetune")]
STAGES = "stages: [{name: first, method: simclr, data: [pool], batch: 4, steps: 1}]\n"


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES, "tiny", TINY)


def asked(section: str) -> list[str]:
    return [name for name in steps_of(section) if name.split(".")[0] in ("probe", "finetune")]


def test_evaluation_steps_without_probes_and_finetuning_measure_no_backbone() -> None:
    assert asked("") == []
    assert asked("evaluate: {starts: [student]}") == []


def test_evaluation_steps_measure_scratch_student_and_stages_by_default() -> None:
    found = asked(STAGES + "evaluate: {probes: [knn, linear]}")
    assert found == ["probe.scratch.kinds", "probe.student.kinds", "probe.stage.first.kinds"]


def test_evaluation_steps_probe_sets_with_classes_and_finetune_on_named_sets() -> None:
    found = asked("evaluate: {probes: [knn], finetune: [world, kinds], starts: [student]}")
    measured = ["probe.{}.kinds", "finetune.{}.world", "finetune.{}.kinds"]
    assert found == [name.format(start) for start in ("scratch", "student") for name in measured]


def test_evaluation_steps_read_their_backbone_and_set_alone() -> None:
    steps = steps_of(STAGES + "evaluate: {probes: [knn], starts: [scratch, student, stage.first, timm]}")
    inputs = {name: step.inputs for name, step in steps.items() if name.startswith("probe.")}
    assert inputs == {
        "probe.scratch.kinds": ("data.kinds",),
        "probe.student.kinds": ("student", "data.kinds"),
        "probe.stage.first.kinds": ("stage.first", "data.kinds"),
        "probe.timm.kinds": ("data.kinds",),
    }


def test_finetune_step_is_incremental_in_seeds_and_labels() -> None:
    steps = steps_of("evaluate: {probes: [knn], finetune: [kinds], starts: [student]}")
    assert steps["finetune.student.kinds"].kind.incremental_keys == ("labels", "seeds")


@pytest.mark.parametrize(("config", "own"), [(probe_config, {"probes"}), (finetune_config, {"schedule", "width"})])
def test_measurement_config_needs_every_setting_but_the_trial(
    config: Callable[..., tuple[dict[str, Any], tuple[str, ...]]], own: set[str]
) -> None:
    settings = {**measurement_settings(EvaluateConfig(), recipe_of("")), "set": "kinds", "splits": "test", "seed": 0}
    start = StartConfig(name="student", step="student", image_size=32)
    assert not {"trial"} & set(config("name", start, settings)[0])
    for key in {*SHARED_KEYS, *own}:
        with pytest.raises(KeyError, match=key):
            config("name", start, {name: value for name, value in settings.items() if name != key})


def test_evaluation_step_config_has_all_that_its_numbers_rest_on() -> None:
    """A change of any version changes the fingerprint."""
    told = "probes: [knn], finetune: [kinds], starts: [student], schedule: suncet"
    steps, worse = (steps_of(f"evaluate: {{{said}}}") for said in (told, f"{told}, corruptions: true"))
    probed, tuned = (steps[f"{kind}.student.kinds"].config["versions"] for kind in ("probe", "finetune"))
    assert probed == {"knn": 1, "draws": sampling.VERSION}
    assert tuned == {"suncet": 2, "draws": sampling.VERSION}
    assert worse["probe.student.kinds"].config["versions"] == {**probed, "corruptions": corruptions.VERSION}


def test_stage_step_has_the_version_of_sampling_if_it_draws() -> None:
    said = "stages: [{name: a, method: simclr, data: [kinds], batch: 16, %s}]"
    for drawing in ("share: 0.5", "labels: {classes: 2}"):
        assert steps_of(said % drawing)["stage.a"].config["draws"] == sampling.VERSION
    assert "draws" not in steps_of(said % "steps: 3")["stage.a"].config, "one that is there stays good"


def test_weights_file_is_a_start_by_name_and_content(tmp_path: Path) -> None:
    path = tmp_path / "mine-v2.safetensors"
    config: list[Mapping[str, Any]] = []
    for content in (b"one", b"other"):
        path.write_bytes(content + b"!" * len(config))
        config.append(steps_of(f"evaluate: {{probes: [knn], starts: ['{path}']}}")["probe.mine_v2.kinds"].config)
    assert config[0]["start"] == config[1]["start"]
    assert config[0]["weights"] != config[1]["weights"], "other weights under the same name are another start"


def test_weights_file_of_any_name_is_a_start_and_teachers_may_have_endings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.tar").write_bytes(b"weights")
    text = MEASURED.replace("  masks: {", "  bin: {") + "evaluate: {probes: [knn], starts: [model.tar, teacher.bin]}"
    starts = {
        step.name: step.config["start"] for step in build_steps(parse_recipe(text, "r")) if "start" in step.config
    }
    assert starts["probe.model.kinds"]["weights"] == "model.tar"
    assert starts["probe.teacher.bin.kinds"]["step"] == "teacher.bin"


def test_weights_files_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "mine.safetensors" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(b"weights")
    with pytest.raises(ConfigError, match=r"a/mine\.safetensors' and '.*b/mine\.safetensors' .* called 'mine'"):
        steps_of(f"evaluate: {{probes: [knn], starts: ['{paths[0]}', '{paths[1]}']}}")
    named = tmp_path / "student.safetensors"
    named.write_bytes(b"weights")
    with pytest.raises(ConfigError, match=r"'student' and '.*student\.safetensors' .* called 'student'"):
        steps_of(f"evaluate: {{probes: [knn], starts: [student, '{named}']}}")


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("probes: [kn]", r"evaluate\.probes: 'kn' is unknown\. Did you mean 'knn'"),
        ("probes: [knn], schedule: quik", r"evaluate\.schedule: 'quik' is unknown\. Did you mean 'quick'"),
        ("finetune: [pool]", r"evaluate\.finetune names 'pool', which has no labels to fine-tune on"),
        ("finetune: [kids]", r"evaluate\.finetune names 'kids', not under data; there are world, pool, kinds"),
        ("probes: [knn], starts: [studnt]", r"evaluate\.starts: start 'studnt' is unknown\. Did you mean 'student'"),
        ("probes: [knn], starts: [teacher.mask]", r"'teacher.mask' is unknown\. Did you mean 'teacher\.masks'"),
        ("probes: [knn], starts: [teacher.mask.pth]", r"weights 'teacher\.mask\.pth': no such file"),
        ("probes: [knn], starts: [stage.one]", r"'stage\.one' is unknown\. .*Known: scratch, student, teacher\.gabor"),
        (
            "probes: [knn], starts: [teacher.gabor]",
            r"'teacher\.gabor' is of kind 'analytic', which leaves no backbone; "
            r"teacher\.masks, student, scratch, timm would work",
        ),
        ("probes: [knn], starts: [no/such/file.pth]", r"no/such/file\.pth': no such file"),
        ("labels: [1]", r"evaluate\.labels\.0: 1 is no amount: a number"),
        ("labels: [some]", r"evaluate\.labels\.0: .some. is no amount: a number"),
        ("seeds: 0", r"evaluate\.seeds: input should be greater than or equal to 1"),
    ],
)
def test_evaluate_section_refuses_what_cannot_be_measured(said: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        steps_of(f"evaluate: {{{said}}}")


class NewKind(TeacherConfig):
    """A kind of teacher from a plug-in."""

    kind: str = "new"
    backbone: str = "resnet10t"
    """Not the name of the backbone that it leaves."""

    def backbone_name(self) -> str:
        return "test_vit"


def test_teacher_kind_says_if_it_leaves_a_backbone() -> None:
    recipe = recipe_of("")
    teachers = {"new": NewKind(task="depth"), "none": TeacherConfig(kind="none", task="depth")}
    compare = CompareConfig(data=["kinds"], methods={"simclr": {"method": "simclr"}}, starts=["teacher.new"], seeds=1)
    recipe = recipe.model_copy(update={"teachers": teachers, "compare": {"all": compare}})
    trial = resolve(recipe).comparisons["all"][-1]
    assert (trial.start.step, trial.trial.backbone) == ("teacher.new", "test_vit")
    says = r"'teacher\.none' is of kind 'none', which leaves no backbone; teacher\.new, student, scratch, timm would"
    with pytest.raises(ConfigError, match=says):
        resolve(recipe.model_copy(update={"evaluate": EvaluateConfig(probes=["knn"], starts=["teacher.none"])}))


STARTED = [
    "evaluate: {probes: [knn], starts: [teacher.early]}",
    "compare: {all: {data: [kinds], methods: {simclr: {method: simclr}}, starts: [teacher.early], batch: 4}}",
]


def started(section: str, weights: Path) -> list[Step]:
    """Return the steps of a recipe that starts from an earlier network."""
    early = f"  early: {{kind: checkpoint, task: depth, weights: '{weights}'}}"
    text = MEASURED.replace("\npool: [", f"\n{early}\npool: [").replace("gabor: 1}", "gabor: 1, early: 1}")
    return build_steps(parse_recipe(text + section, "recipe"))


@pytest.mark.parametrize("section", STARTED)
@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"format": "timm_classifier"}, r"a model of format 'timm_classifier'; a network of this version"),
        (None, r"no model\.json beside it, as a trained network has"),
    ],
)
def test_plan_refuses_weights_that_are_no_network(section: str, about: Any, says: str, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    if about:
        write_json(tmp_path / "model.json", about)
    with pytest.raises(ConfigError, match=rf"^teachers\.early: weights '{weights}': {says}"):
        started(section, weights)


def test_evaluation_steps_refuse_probes_without_class_labels(tmp_path: Path) -> None:
    recipe = tmp_path / "none.yaml"
    text = MEASURED.replace("tasks: [classification]", "tasks: [depth]") + "evaluate: {probes: [knn]}"
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"evaluate\.probes is \['knn'\], but no set has labels that they learn from"):
        must.plan(recipe, tmp_path / "root")


# A run of it


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "measured.yaml"
    path.write_text(MEASURED + ASKED, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def measured(finished_root: Path, recipe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """Run up to `evaluate` on a copy of the whole run's root; return the outcome and that root."""
    root = Path(shutil.copytree(finished_root, tmp_path_factory.mktemp("measured") / "root"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCHEDULES, "tiny", TINY)
        return must.run(recipe_path, root, steps=Selection("evaluate")), root


def test_run_up_to_evaluate_makes_probes_and_finetuning(measured: tuple[Outcome, Path]) -> None:
    outcome, _ = measured
    assert [name for name in outcome.artifacts if name in MADE] == MADE
    assert set(outcome.artifacts) == {*STEPS, "data.kinds", *MADE}


def test_run_that_is_done_finds_its_report_and_runs_nothing(measured: tuple[Outcome, Path], recipe_path: Path) -> None:
    outcome, root = measured
    runs = len(list((root / "runs").iterdir()))
    for selection in (Selection("evaluate"), Selection()):
        again = must.run(recipe_path, root, steps=selection)
        assert (again.ran, again.folder) == (0, outcome.folder)
    assert len(list((root / "runs").iterdir())) == runs


def test_run_of_one_measurement_makes_it_alone(measured: tuple[Outcome, Path], recipe_path: Path) -> None:
    _, root = measured
    for only in ("evaluate", "probe.student.kinds"):
        change = ["seed=0", "evaluate.seeds=2", "evaluate.splits=val"]
        alone = [each.step.name for each in must.plan(recipe_path, root, change, Selection(only=only))]
        assert alone[-1] == only
        assert not {*MADE, "evaluate"} & {*alone[:-1]}


def test_measured_json_is_written_beside_the_report(measured: tuple[Outcome, Path]) -> None:
    outcome, _ = measured
    assert outcome.folder
    kept: list[Record] = json.loads((outcome.folder / "measured.json").read())
    assert kept == [record for name in MADE for record in records_of(outcome.artifacts[name])]
    assert {record["start"] for record in kept} == {"scratch", "student", "teacher.masks"}
    assert {(record["protocol"], record["n"], record["seed"]) for record in kept} == {
        ("knn v1", 5, 0),
        ("finetune tiny v1", 5, 0),
    }


def test_backbones_section_of_a_run_has_scores_and_costs(measured: tuple[Outcome, Path]) -> None:
    outcome, _ = measured
    assert outcome.folder
    page = (outcome.folder / "report.html").read().decode()
    assert "could not be shown" not in page
    part = page.split('id="backbones"')[1].split("</section>")[0]
    assert "kinds: classification" in part
    assert "Measured on 5 images of kinds/test." in part
    board, costs = part.split("<table>")[1:]
    for start in ("scratch", "student", "teacher.masks"):
        assert f">{start}{' (the student&#39;s start)' * (start == 'scratch')}<" in board
        assert f">{start}<" in costs
    student = costs.split(">student<")[1].split("</tr>")[0]
    assert student.count(f">{TRAIN_STEPS}<") == 2, "its own steps, and those of the teacher that was trained"


def test_finetune_step_with_another_seed_trains_it_alone(measured: tuple[Outcome, Path], recipe_path: Path) -> None:
    _, root = measured
    last = Selection("finetune.student.kinds")
    more = must.run(recipe_path, root, ["evaluate.seeds=2"], last)
    assert more.ran == 1
    assert more.artifacts["finetune.student.kinds"].counts["trained"] == 1
