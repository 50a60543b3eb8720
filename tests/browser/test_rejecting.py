"""Rejecting, taking back, comparing stores, and the files that were left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from browser.answers import Answers
from browser.app import create_app
from pipeline.stores.rejections import read_rejections, reject
from tests.browser.copies import copied
from tests.conftest import World
from tests.waiting import wait_until


@pytest.fixture
def answers(world: World, tmp_path: Path) -> Answers:
    """Return the answers over a copy of the tiny world, in which labels may be rejected."""
    return copied(world, tmp_path / "root")


@pytest.fixture
def page(answers: Answers) -> Iterator[TestClient]:
    with TestClient(create_app(answers), "http://localhost") as client:
        yield client


def post(page: TestClient, path: str, **content: Any) -> Any:
    answer = page.post(path, json=content)
    assert answer.status_code == 200, answer.text
    return answer.json()


def keys(page: TestClient, *conditions: str, **more: Any) -> list[str]:
    answer = page.get("/api/images", params={"f": list(conditions), "limit": 1000, **more})
    assert answer.status_code == 200, answer.text
    return [image["key"] for image in answer.json()["images"]]


def listed(answers: Answers) -> set[tuple[str, str | None, str]]:
    rows = read_rejections(answers.loading.root).to_pylist()
    return {(row["key"], row["store"], row["reason"]) for row in rows}


def test_reject_and_take_back_an_image(page: TestClient, answers: Answers) -> None:
    some = keys(page)[:2]
    done = post(page, "/api/reject", keys=some, reason="blurred")
    assert done["count"] == 2
    assert listed(answers) == {(key, None, "blurred") for key in some}
    assert keys(page, "rejected=yes") == some
    assert not set(some) & set(keys(page, "rejected=no"))
    assert page.get(f"/api/image/{some[0]}").json()["rejected"] == [""]
    assert post(page, "/api/take-back", keys=some[:1])["count"] == 1
    assert keys(page, "rejected=yes") == some[1:]


def test_reject_a_label_of_one_store_but_not_the_image(page: TestClient, answers: Answers) -> None:
    name = next(name for name in answers.loading.stores if not name.startswith("true-"))
    key = keys(page)[0]
    post(page, "/api/reject", keys=[key], store=name.rpartition("-")[0], reason="wrong")
    assert listed(answers) == {(key, name, "wrong")}, "the store's whole name, as a teacher has many versions"
    assert keys(page, f"{name}.rejected=yes") == [key]
    assert keys(page, "rejected=yes") == []
    assert page.get(f"/api/image/{key}").json()["rejected"] == [name]


def test_undo_takes_back_only_what_the_rejection_added(page: TestClient, answers: Answers) -> None:
    first = keys(page, "split=val")[0]
    post(page, "/api/reject", keys=[first], reason="before")
    every = keys(page, "split=val")
    done = post(page, "/api/reject", f=["split=val"], reason="all of these")
    assert done["count"] == len(set(every)) - 1
    assert {key for key, _, _ in listed(answers)} == set(every)
    assert post(page, f"/api/undo/{done['undo']}")["count"] == len(set(every)) - 1
    assert {key for key, _, _ in listed(answers)} == {first}
    assert page.post(f"/api/undo/{done['undo']}", json={}).status_code == 404, "once"


def test_undo_takes_back_only_what_was_not_rejected_before(page: TestClient, answers: Answers) -> None:
    """Neither the page nor its undo changes what somebody else rejected, seen by the page or not."""
    one, two, three = keys(page)[:3]
    reject(answers.loading.root, [one], None, "blurred")
    post(page, "/api/reject", keys=[two], reason="dark")
    reject(answers.loading.root, [three], None, "odd")
    done = post(page, "/api/reject", keys=[one, two, three, *keys(page)[3:4]], reason="all of them")
    assert done["count"] == 1
    post(page, f"/api/undo/{done['undo']}")
    assert listed(answers) == {(one, None, "blurred"), (two, None, "dark"), (three, None, "odd")}


def test_refresh_loads_what_others_reject(page: TestClient, answers: Answers) -> None:
    from pipeline.stores.rejections import reject  # noqa: PLC0415

    key = keys(page)[0]
    reject(answers.loading.root, [key], None, "elsewhere")
    answers.loading.refresh()
    assert keys(page, "rejected=yes") == [key]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"keys": ["x"], "reason": "a"}, "no image's key"),
        ({"keys": ["0" * 16], "reason": " "}, "is empty"),
        ({"keys": ["0" * 16], "store": "nobody", "reason": "a"}, "no label store"),
        ({"f": ["nothing=1"], "reason": "a"}, "Column 'nothing' is unknown"),
        ({"reason": "a"}, "give either `keys` or `f`"),
        ({"keys": [], "f": [], "reason": "a"}, "give either `keys` or `f`"),
        ({"keys": ["0" * 16], "reason": "a", "more": 1}, "Extra inputs"),
    ],
    ids=str,
)
def test_rejection_request_is_checked(page: TestClient, answers: Answers, content: dict[str, Any], says: str) -> None:
    answer = page.post("/api/reject", json=content)
    assert answer.status_code in (400, 422)
    assert says in answer.text
    assert listed(answers) == set()


def pair_of(answers: Answers) -> tuple[str, str]:
    """Return two stores whose labels mean the same: a teacher's and the true ones it learned from."""
    stores = list(answers.loading.stores.values())
    return next(
        (one.name, other.name)
        for one in stores
        for other in stores
        if one is not other and one.label.space == other.label.space and other.name.startswith("true-")
    )


def test_differences_compare_two_stores_image_by_image(page: TestClient, answers: Answers) -> None:
    one, other = pair_of(answers)
    column = f"{one}:{other}.differ"
    keys(page, order=f"-{column}")
    wait_until(lambda: all(pair["done"] == pair["total"] > 0 for pair in answers.comparison_progress()))
    params: dict[str, Any] = {"order": f"-{column}", "show": column, "limit": 1000}
    found = page.get("/api/images", params=params).json()
    values = [image[column] for image in found["images"] if image[column] is not None]
    assert values == sorted(values, reverse=True)
    assert len(values) > 0
    [left], [right] = ([answers.loading.stores[name]] for name in (one, other))
    threshold = left.label.default_threshold
    for image in found["images"][:3]:
        number = answers.image_id(image["key"])
        labels = [answers.pictures.value(store, number, threshold) for store in (left, right)]
        assert labels[0] is not None
        assert labels[1] is not None
        assert image[column] == pytest.approx(left.label.distance(labels[0], labels[1]), abs=1e-5)
    most = {image["key"] for image in found["images"] if image[column] is not None and image[column] >= values[0]}
    assert set(keys(page, f"{column}>={values[0]!r}")) == most
    histogram = page.get("/api/histogram", params={"column": column}).json()
    assert sum(histogram["counts"]) == len(values)


def test_differences_follow_the_label_files(page: TestClient, answers: Answers) -> None:
    one, other = pair_of(answers)
    column = f"{one}:{other}.differ"
    file, _ = next(iter(answers.loading.common_shards(one, other).values()))
    whole = file.load(Path.read_bytes)

    def compared() -> int:
        """Return the number of images with a difference, once all are compared."""
        answers.loading.refresh()
        keys(page, order=column)
        wait_until(lambda: all(pair["done"] == pair["total"] for pair in answers.comparison_progress()))
        return len(keys(page, f"{column}>=0"))

    everything = compared()
    file.path.remove()
    fewer = compared()
    assert fewer < everything
    file.path.write(whole)
    assert compared() == everything
    file.path.write(b"damaged")
    assert compared() == fewer, "a damaged file is not waited for"


def test_differences_refuse_labels_of_another_meaning(page: TestClient, answers: Answers) -> None:
    one, _ = pair_of(answers)
    task = answers.loading.stores[one].label.space.task
    wrong = next(store.name for store in answers.loading.stores.values() if store.label.space.task != task)
    for other, says in ((wrong, "can't be compared"), (one, "can't be compared"), ("nobody", "no label store")):
        answer = page.get("/api/images", params={"order": f"{one}:{other}.differ"})
        assert answer.status_code == 400
        assert says in answer.json()["error"]


def test_left_out_lists_files_of_a_set(page: TestClient, answers: Answers) -> None:
    dataset = next(iter(answers.loading.catalogue.sets))
    for kind in ("quarantine", "duplicates", "notes"):
        assert page.get(f"/api/left-out/{dataset}/{kind}").json()["columns"] == ["source", "split", "reason"]
    assert page.get(f"/api/left-out/{dataset}/notes", params={"has": "no such name"}).json()["total"] == 0
    assert page.get(f"/api/left-out/{dataset}/secrets").status_code == 400
    assert page.get("/api/left-out/nothing/notes").status_code == 400
