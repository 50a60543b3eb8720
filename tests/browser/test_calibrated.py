"""The browser over a store of calibrated labels: thresholds, filters, tables and texts go by probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser.answers import Answers
from browser.filters import ImageSelection
from tests.browser.copies import CALIBRATION, add_calibrated, copied
from tests.conftest import World


@pytest.fixture(scope="module")
def answers(world: World, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    answers = copied(world, tmp_path_factory.mktemp("calibrated") / "root")
    for maker in ("boxes", "masks", "kinds"):
        add_calibrated(Path(answers.loading.root.path), maker)
    answers.loading.refresh()
    return answers


def calibrated(answers: Answers, maker: str) -> str:
    return f"{maker}-{'c' * 12}"


def test_store_states_its_calibration(answers: Answers) -> None:
    about: dict[str, Any] = {entry["name"]: entry["calibration"] for entry in answers.about()["stores"]}
    assert about.pop(calibrated(answers, "boxes")) == CALIBRATION.to_json()
    assert about["true-truth-detection"] is None


def test_class_filter_and_histogram_go_by_probabilities(answers: Answers) -> None:
    name = calibrated(answers, "boxes")
    store = answers.stores[name]
    shards = answers.loading.label_files(name)
    assert shards
    ids = answers.tables.query_ids(f"SELECT id FROM {store.table}", ())
    thresholds = {name: 0.3}
    expected = {
        class_name: sum(
            number in answers.pictures.value(store, int(image), 0.3)["classes"]  # type: ignore[index]
            for image in ids
        )
        for number, class_name in enumerate(store.class_names)
    }
    found = answers.histogram(ImageSelection(thresholds=thresholds), f"{name}.class")
    assert dict(zip(found["values"], found["counts"], strict=True)) == {k: n for k, n in expected.items() if n}
    assert sum(expected.values()) > 0
    for class_name, count in expected.items():
        selection = ImageSelection([f"{name}.class={class_name}"], thresholds=thresholds)
        assert answers.images(selection, 1, 0)["total"] == count


@pytest.mark.parametrize("maker", ["boxes", "masks", "kinds"])
def test_tables_have_probabilities_beside_confidences(answers: Answers, maker: str) -> None:
    store = answers.stores[calibrated(answers, maker)]
    sql = f"SELECT probability, confidence FROM {store.table}"
    rows = np.array(answers.tables.query(sql))
    assert len(rows)
    if maker == "boxes":
        np.testing.assert_allclose(rows[:, 0], CALIBRATION(rows[:, 1]), atol=1e-6)
    raw = answers.stores[maker]
    assert answers.tables.query(f"SELECT count(*) FROM {raw.table} WHERE probability <> confidence") == [(0,)]


def test_balance_keeps_by_probabilities(answers: Answers) -> None:
    store = answers.stores[calibrated(answers, "boxes")]
    found = answers.balance(ImageSelection(), store, 0.3)
    sql = f"SELECT id FROM {store.table}"
    boxes = [answers.pictures.value(store, int(image), 0.0) for image in answers.tables.query_ids(sql, ())]
    probabilities = np.concatenate([CALIBRATION(value["scores"]) for value in boxes if value])
    assert sum(found["held"]) == pytest.approx(probabilities.sum(), rel=1e-4)
    assert sum(found["kept"]) == pytest.approx(probabilities[probabilities >= np.float32(0.3)].sum(), rel=1e-4)
