"""What a run of a comparison leaves: records, a report, and what another run of it reuses."""

from __future__ import annotations

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
from flows.run.run import Outcome
from ingest.pool import pool_keys
from pipeline.errors import ConfigError
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from selfsup.stages.step import load_images, stage_config
from tests.evaluation.measuring import Record, keys_of, records_of
from tests.flows.measured import LAST, MEASURED, SMALL, written
from tests.flows.tiny import TRAIN_STEPS


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
