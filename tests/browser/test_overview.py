"""The header's numbers: teachers with their metrics, and labels of images that are unlike those they know."""

from __future__ import annotations

from pathlib import Path

from fastapi.testclient import TestClient

from browser.answers import Answers
from tests.browser.copies import add_calibrated, copied
from tests.conftest import World


def test_overview_has_every_teacher_with_its_metric(page: TestClient, world: World) -> None:
    found = page.get("/api/overview").json()
    teachers = {teacher["name"]: teacher for teacher in found["teachers"]}
    assert set(teachers) == {name.removeprefix("teacher.") for name in world.artifacts if name.startswith("teacher.")}
    for name, teacher in teachers.items():
        made = world.artifacts[f"teacher.{name}"]
        assert made.digest.startswith(teacher["version"])
        assert teacher["store"] == f"{name}-{teacher['version']}"
        assert teacher["made"] == made.manifest["began"]
        if "metric" in made.counts:
            metric = made.counts["metric"]
            assert teacher["metric"] == metric
            assert teacher["score"] == made.counts["scores"][metric]
            assert teacher["baseline"] == made.counts["baseline"][metric]
            assert teacher["held_out"] == made.counts["held_out"]
    assert "metric" not in teachers["gabor"]
    student = world.artifacts.get("student")
    assert (found["student"] or {}).get("backbone") == ("test_resnet" if student else None)


def test_overview_names_a_teacher_whose_artifact_is_gone(world: World, tmp_path: Path) -> None:
    answers = copied(world, tmp_path / "root")
    name = add_calibrated(tmp_path / "root", "boxes")
    (tmp_path / "root" / "labels" / answers.store("boxes").name).rename(tmp_path / "gone")
    answers.loading.refresh()
    teacher = next(each for each in answers.overview.to_json()["teachers"] if each["name"] == "boxes")
    assert teacher["store"] == name
    assert (teacher["task"], teacher["made"]) == ("detection", None)


def test_overview_counts_what_is_unlike_by_set(world: World, tmp_path: Path) -> None:
    answers = copied(world, tmp_path / "root")
    store = next(store for store in answers.loading.newest_teachers().values())
    assert answers.overview.unlike() == rows_of(answers)
    if not store.has_applicability:
        return
    with answers.tables.cursor() as cursor:
        cursor.execute(f"UPDATE {store.table} SET applicability = 0.01")
    answers.tables.version += 1
    rows = [row for row in answers.overview.unlike() if store.name.startswith(row["teacher"])]
    assert rows
    assert all(row["known"] == row["unlike"] > 0 for row in rows)


def rows_of(answers: Answers) -> list[dict[str, object]]:
    """Count again, store by store and set by set."""
    found = []
    for maker, store in answers.loading.newest_teachers().items():
        if store.has_applicability:
            sql = (
                f'SELECT "set", applicability FROM images JOIN {store.table} USING (id) WHERE applicability IS NOT NULL'
            )
            rows = answers.tables.query(sql)
            for name in sorted({row[0] for row in rows}):
                values = [value for each, value in rows if each == name]
                low = sum(value < 0.05 for value in values)
                found.append({"teacher": maker, "set": name, "known": len(values), "unlike": low})
    return found
