"""Test the steps of a recipe, and the plan of a run on a root. No torch, nothing is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.gc import inventory
from flows.plan.plan import plan
from flows.plan.selection import Selection
from flows.plan.steps import build_steps
from ingest.rejections import REJECTED_IMAGES, REJECTED_LABELS
from pipeline.errors import PROJECT, ConfigError
from pipeline.recipe.reader import parse_recipe, read_recipe
from pipeline.steps.artifact import Artifact, Inputs, Step, fingerprint
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from pipeline.stores.rejections import read_rejections, reject
from tests.disk import folder_of
from tests.flows.tiny import RECIPE, STEPS
from tests.steps import make_step


def steps_of(*overrides: str) -> dict[str, Step]:
    return {step.name: step for step in build_steps(parse_recipe(RECIPE, "tiny", overrides))}


def test_plan_steps_are_in_order_of_their_inputs() -> None:
    steps = steps_of()
    assert list(steps) == STEPS
    for position, step in enumerate(steps.values()):
        assert set(step.inputs) <= set(STEPS[:position])


def test_plan_steps_have_the_expected_inputs() -> None:
    steps = steps_of()
    assert steps["teacher.masks"].inputs == ("data.world",)
    assert steps["teacher.gabor"].inputs == ()
    assert steps["pool"].inputs == ("data.world", "data.pool")
    assert set(steps["label"].inputs) == {"pool", "data.pool", "data.world", "teacher.masks", "teacher.gabor"}
    assert {"pool", "label", "teacher.masks", "teacher.gabor"} <= set(steps["student"].inputs)
    assert {"student", "data.world", "teacher.masks"} <= set(steps["evaluate"].inputs)


def test_plan_gathers_the_pool_before_any_training() -> None:
    """A pool without an image is then told at once."""
    kinds = {step.name: step.kind.early for step in steps_of().values()}
    assert kinds["pool"]
    assert STEPS.index("pool") < STEPS.index("teacher.masks")


def changed_by(override: str) -> set[str]:
    """Return the steps whose configuration an override changes."""
    before, after = steps_of(), steps_of(override)
    return {name for name in STEPS if before[name].config != after[name].config}


@pytest.mark.parametrize(
    ("override", "steps"),
    [
        ("runtime.runner=threads", set()),
        ("runtime.workers=4", set()),
        ("runtime.precision=bf16", set()),
        ("runtime.checkpoint_s=9", set()),
        ("data.pool.count=37", {"data.pool"}),
        ("teachers.masks.lr=0.5", {"teacher.masks"}),
        ("teachers.masks.require={miou: 0.5}", {"label"}),
        ("student.lr=0.5", {"student"}),
        ("student.thresholds.masks=0.25", {"student"}),
        ("evaluate.splits=val", {"evaluate"}),
        ("seed=7", {"teacher.masks", "teacher.gabor", "student", "evaluate"}),
        ("pool=[pool]", {"pool"}),
    ],
)
def test_setting_changes_the_fingerprints_of_the_right_steps(override: str, steps: set[str]) -> None:
    assert changed_by(override) == steps


KEY = "0123456789abcdef"


def rejecting(root: Root, store: str | None, key: str = KEY) -> dict[str, Step]:
    """Return the steps after a rejection."""
    reject(root, [key], store, "wrong")
    return {step.name: step for step in build_steps(parse_recipe(RECIPE, "tiny"), read_rejections(root))}


def test_rejected_image_changes_pool_and_rejected_label_student_alone(tmp_path: Path) -> None:
    before = steps_of()
    steps = rejecting(Root.of(tmp_path), None)
    assert list(steps) == [REJECTED_IMAGES, *STEPS]
    assert {name for name in STEPS if steps[name] != before[name]} == {"pool"}
    assert steps["pool"].inputs == (*before["pool"].inputs, REJECTED_IMAGES)
    assert steps["pool"].config == before["pool"].config
    steps = rejecting(Root.of(tmp_path / "other"), "masks-0123456789ab")
    assert list(steps) == [REJECTED_LABELS, *STEPS]
    assert {name for name in STEPS if steps[name] != before[name]} == {"student"}
    assert steps["student"].inputs == (*before["student"].inputs, REJECTED_LABELS)


@pytest.mark.parametrize(
    "override",
    ["student.loss_weights.masks=0", "student.labels=true_only", "teachers={gabor: {kind: analytic, image_size: 32}}"],
)
def test_rejected_labels_that_the_student_does_not_use_change_nothing(override: str, tmp_path: Path) -> None:
    reject(Root.of(tmp_path), [KEY], "masks-0123456789ab", "wrong")
    recipe = parse_recipe(RECIPE, "tiny", [override])
    assert build_steps(recipe, read_rejections(Root.of(tmp_path))) == build_steps(recipe)


def test_rejections_in_step_configs_have_no_time_and_reason(tmp_path: Path) -> None:
    root = Root.of(tmp_path)
    first = rejecting(root, "masks-0123456789ab")
    reject(root, [KEY], "masks-0123456789ab", "another reason")
    assert rejecting(root, "other-0123456789ab") == first
    second = rejecting(root, "masks-ba9876543210")
    assert second[REJECTED_LABELS].config["rejected"]["count"] == 2
    assert second[REJECTED_LABELS].config["rejected"]["sha256"] != first[REJECTED_LABELS].config["rejected"]["sha256"]
    assert rejecting(root, "gabor-0123456789ab")[REJECTED_LABELS].config["teachers"] == ["gabor", "masks"]


def test_truths_are_inputs_of_the_student() -> None:
    more = "data.fixed={kind: scenes, count: 12, seed: 9, size: 48, tasks: [segmentation]}"
    without, with_it = steps_of(more)["student"], steps_of(more, "student.truths.masks=[fixed]")["student"]
    assert set(with_it.inputs) - set(without.inputs) == {"data.fixed"}
    assert with_it.config["student"]["truths"] == {"masks": ["fixed"]}
    assert steps_of(more, "student.truths.masks=[world]")["student"].inputs == without.inputs


def test_truths_have_to_fit_the_teacher() -> None:
    fixed = "data.fixed={kind: scenes, count: 12, seed: 9, size: 48, tasks: [depth]}"
    for teacher in ("masks", "gabor"):
        with pytest.raises(ConfigError, match=r"'fixed'.*labels for (depth|'texture'; it has them for depth)"):
            steps_of(fixed, f"student.truths.{teacher}=[fixed]")


def test_student_step_of_the_quickstart_keeps_its_fingerprint() -> None:
    """A change of this fingerprint retrains every student: it must be deliberate."""
    steps = {step.name: step for step in build_steps(read_recipe(PROJECT / "recipes" / "quickstart.yaml"))}
    student = steps["student"]
    assert fingerprint(student, {name: name for name in student.inputs}) == "b591add69a26eeac"
    empty = build_steps(read_recipe(PROJECT / "recipes" / "quickstart.yaml", ["student.truths={}"]))
    assert student in empty


def test_data_step_changes_with_the_content_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"one")
    overrides = [f"data.pool={{kind: folder, path: {tmp_path}}}"]
    before = steps_of(*overrides)["data.pool"]
    (tmp_path / "a.jpg").write_bytes(b"other")
    assert steps_of(*overrides)["data.pool"].config != before.config


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write the configuration's `result`, as a step."""
    (out / "result").write_text(str(config["result"]))
    return {}


def chain(first: int = 1, second: int = 2) -> list[Step]:
    """Return three steps, each with the one before as input; the `note` of the first does not change its result."""
    here = f"{__name__}:make"
    return [
        make_step("first", here, {"result": min(first, 5), "note": first}),
        make_step("second", here, {"result": second, "nested": {"deep": second}}, ("first",)),
        make_step("third", here, {"result": 3}, ("second",)),
    ]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(Root.of(tmp_path))


def carry_out(steps: list[Step], workspace: Workspace) -> dict[str, Artifact]:
    """Make all steps that are missing."""
    made: dict[str, Artifact] = {}
    for step in steps:
        inputs = {name: made[name] for name in step.inputs}
        found = workspace.find(step, step.fingerprint(inputs))
        made[step.name] = found or workspace.make(step, Inputs(inputs, Runtime(workspace.root)))
    return made


def whys(steps: list[Step], workspace: Workspace) -> list[tuple[str, str]]:
    return [(each.action, each.why) for each in plan(steps, workspace)]


def test_plan_on_an_empty_root_runs_everything(workspace: Workspace) -> None:
    assert whys(chain(), workspace) == [
        ("run", "never made here"),
        ("run", "never made here; waits for first"),
        ("run", "never made here; waits for second"),
    ]


def test_plan_reuses_artifacts(workspace: Workspace) -> None:
    made = carry_out(chain(), workspace)
    planned = plan(chain(), workspace)
    assert [each.why for each in planned] == ["nothing changed"] * 3
    assert {each.step.name: each.artifact for each in planned} == made


def test_plan_names_a_changed_setting_with_both_values(workspace: Workspace) -> None:
    carry_out(chain(), workspace)
    found = whys(chain(second=4), workspace)
    assert found[0] == ("reuse", "nothing changed")
    assert found[1] == ("run", "nested.deep: 2 -> 4; result: 2 -> 4")
    assert found[2][1].startswith("waits for second")


def test_plan_stops_the_cascade_at_an_equal_result(workspace: Workspace) -> None:
    """A changed first step with the same result leaves later steps reusable."""
    carry_out(chain(first=5), workspace)
    before = carry_out(chain(first=5), workspace)
    after = carry_out(chain(first=6), workspace)
    assert after["first"].path != before["first"].path
    assert after["second"] == before["second"]
    assert [action for action, _ in whys(chain(first=6), workspace)] == ["reuse"] * 3


def test_plan_names_a_new_input(workspace: Workspace) -> None:
    carry_out(chain(), workspace)
    carry_out(chain(first=3)[:1], workspace)
    assert whys(chain(first=3), workspace)[1] == ("run", "new first")


def of_version(step: Step, version: int) -> Step:
    return dataclasses.replace(step, kind=dataclasses.replace(step.kind, version=version))


def test_plan_names_inputs_that_appear_and_disappear(workspace: Workspace) -> None:
    """This holds for inputs that exist and for inputs to be made."""
    first, second, third = chain()
    fewer, more = [first, dataclasses.replace(second, inputs=())], [first, second]
    carry_out(fewer, workspace)
    assert whys(more, workspace)[1] == ("run", "new first")
    assert whys([of_version(first, 2), second], workspace)[1] == (
        "run",
        "new first; waits for first",
    )
    carry_out([*more, third], workspace)
    assert [action for action, _ in whys(fewer, workspace)] == ["reuse", "reuse"]
    assert whys([first, of_version(dataclasses.replace(second, inputs=()), 2)], workspace)[1] == (
        "run",
        "without first; version 1 -> 2",
    )


def test_plan_names_a_new_version_of_a_step(workspace: Workspace) -> None:
    carry_out(chain(), workspace)
    first, *others = chain()
    assert whys([of_version(first, 2), *others], workspace)[0] == ("run", "version 1 -> 2")


@pytest.mark.parametrize(
    ("selection", "step", "said"),
    [
        (Selection("second", force=("third",)), "third", "as far as 'second'"),
        (Selection("third", only="second", start="first"), "first", "'second' alone"),
    ],
)
def test_plan_refuses_to_force_steps_outside_the_run(
    workspace: Workspace, selection: Selection, step: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=f"Step '{step}' is to be made again, but .* {said}"):
        selection.of(plan(chain(), workspace))


def test_plan_refuses_a_root_of_another_version(workspace: Workspace) -> None:
    made = carry_out(chain(), workspace)
    manifest = folder_of(made["second"]) / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace('"schema": 1', '"schema": 2'), "utf-8")
    said = r"second.*: written by must 0\.1\.0 with schema 2; .* reads schema 1\. Use that version .* another --root"
    with pytest.raises(ConfigError, match=said):
        plan(chain(second=4), workspace)
    with pytest.raises(ConfigError, match=said):
        inventory.list_artifacts(workspace.root, [], inventory.list_files(workspace.root, "artifacts"))


def test_plan_makes_a_damaged_artifact_again(workspace: Workspace) -> None:
    made = carry_out(chain(), workspace)
    (folder_of(made["second"]) / "result").write_text("longer than it was")
    assert whys(chain(), workspace)[1] == ("run", "its files are no longer complete")


def test_plan_reads_and_writes_nothing(workspace: Workspace) -> None:
    carry_out(chain(), workspace)
    before = sorted(Path(workspace.root.path).rglob("*"))
    plan(chain(second=9), workspace)
    assert sorted(Path(workspace.root.path).rglob("*")) == before


def test_plan_up_to_a_step(workspace: Workspace) -> None:
    planned = plan(list(steps_of().values()), workspace)
    assert [each.step.name for each in Selection("label").of(planned)] == STEPS[:6]
    assert [each.step.name for each in Selection("teacher.masks").of(planned)] == ["data.world", "teacher.masks"]
    assert Selection("evaluate").of(planned) == planned
    with pytest.raises(ConfigError, match=r"'lable' is unknown\. Did you mean 'label'"):
        Selection("lable").of(planned)


def test_step_kinds_that_train_with_several_processes_or_reuse_earlier_work() -> None:
    text = RECIPE + "stages: [{name: first, method: simclr, data: [pool], batch: 4, steps: 3}]"
    steps = build_steps(parse_recipe(text, "tiny"))
    assert [step.name for step in steps if step.kind.trains] == ["teacher.masks", "student", "stage.first"]
    assert [step.name for step in steps if step.kind.reuses_earlier_work] == ["data.world", "data.pool", "label"]
