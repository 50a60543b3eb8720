"""The browser's answers over a tiny world: lists, filters, histograms, labels, pictures, and refusals."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from browser.answers import Answers, whole_edges
from browser.app import create_app
from browser.filters import ImageSelection
from browser.guard import check_token, read_token
from browser.loading import Loading
from browser.pictures import as_jpeg
from pipeline.errors import ConfigError
from pipeline.steps.artifact import read_json
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelShard
from tasks import label as label_of
from tests.browser.copies import copied
from tests.conftest import World

SECRET = "16 & more signs=?"


def get(page: TestClient, path: str, **parameters: Any) -> Any:
    answer = page.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def all_images(page: TestClient, *conditions: str, order: str = "id") -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = get(page, "/api/images", f=list(conditions), order=order, limit=1000)["images"]
    return images


def rows(world: World, teacher: str) -> list[dict[str, Any]]:
    """Return all rows of a teacher's label files, as they are on disk."""
    made = world.artifacts["label"]
    entries = [entry for entry in made.load("labels.json", read_json) if entry["teacher"] == teacher]
    space = next(iter(shard_spaces(world, teacher)))
    files = [LabelShard(made.external_file(entry["path"]), label_of(space)) for entry in entries]
    return [row for shard in files for row in shard.rows()]


def shard_spaces(world: World, teacher: str) -> Iterator[Any]:
    from tasks.teacher import Teacher  # noqa: PLC0415

    yield Teacher.load(world.artifacts[f"teacher.{teacher}"]).space


def teachers(world: World) -> list[str]:
    return [name.removeprefix("teacher.") for name in world.artifacts if name.startswith("teacher.")]


def test_about_lists_all_stores_and_sets(page: TestClient, world: World) -> None:
    about = get(page, "/api/about")
    assert about["loaded"] == about["found"] > 0
    assert about["damaged"] == {}
    assert {store["maker"] for store in about["stores"] if store["learned"]} == set(teachers(world))
    assert {entry["name"] for entry in about["sets"]} == {
        name[5:] for name in world.artifacts if name.startswith("data.")
    }
    for store in about["stores"]:
        assert sum(store["counts"].values()) > 0, store["name"]
    assert about["images"] == len(all_images(page))


def test_sql_finds_every_row_of_every_label_file(page: TestClient, world: World) -> None:
    for teacher in teachers(world):
        expected = sorted((row["key"], row["confidence"]) for row in rows(world, teacher))
        sql = f'SELECT key, confidence FROM images JOIN "{teacher}" USING (id) ORDER BY ALL'
        found = page.post("/api/sql", json={"sql": sql}).json()["rows"]
        assert [(key, pytest.approx(confidence)) for key, confidence in found] == expected


def test_images_combine_conditions(page: TestClient, world: World) -> None:
    teacher = teachers(world)[0]
    confidence = {row["key"]: row["confidence"] for row in rows(world, teacher)}
    middle = float(np.median(list(confidence.values())))
    below = {image["key"] for image in all_images(page, f"{teacher}.confidence<{middle!r}")}
    assert below == {key for key, value in confidence.items() if value < np.float32(middle)}
    both = all_images(page, f"{teacher}.confidence<{middle!r}", "split=train", "source~1")
    assert {image["key"] for image in both} == {
        image["key"] for image in all_images(page) if image["key"] in below and "1" in image["source"]
    } & {image["key"] for image in all_images(page, "split=train")}


def test_images_labelled_are_those_that_a_teacher_has_a_label_of(world: World, tmp_path: Path) -> None:
    answers = copied(world, tmp_path / "root")
    expected = {row["key"] for teacher in teachers(world) for row in rows(world, teacher) if row["status"] == "ok"}
    everything = answers.images(ImageSelection(), 1000, 0)["images"]
    for answer, keys in (("yes", expected), ("no", {image["key"] for image in everything} - expected)):
        found = answers.images(ImageSelection([f"labelled={answer}"]), 1000, 0)["images"]
        assert {image["key"] for image in found} == keys, answer
    assert answers.about()["start"] == ["labelled=yes"]
    key = next(iter(expected))
    for store in answers.loading.newest_teachers().values():  # as if no teacher could label it
        names = (store.name, answers.image_id(key))
        with answers.tables.cursor() as cursor:
            cursor.execute("INSERT INTO failures VALUES (?, ?, 'failed', 'damaged')", names[::-1])
    found = answers.images(ImageSelection(["labelled=yes"]), 1000, 0)["images"]
    assert {image["key"] for image in found} == expected - {key}


def test_images_labelled_are_none_without_a_teacher(world: World, tmp_path: Path) -> None:
    shutil.copytree(Path(world.workspace.root.path), tmp_path / "root", ignore=shutil.ignore_patterns("labels"))
    loading = Loading(Root.of(tmp_path / "root"))
    loading.refresh()
    answers = Answers(loading)
    assert answers.about()["start"] == []
    assert answers.images(ImageSelection(["labelled=yes"]), 10, 0)["total"] == 0
    assert answers.images(ImageSelection(["labelled=no"]), 10, 0)["total"] == answers.about()["images"]


def test_images_have_an_order_and_pages(page: TestClient, world: World) -> None:
    teacher = teachers(world)[0]
    confidence = {row["key"]: row["confidence"] for row in rows(world, teacher)}
    for order, sign in ((f"{teacher}.confidence", 1), (f"-{teacher}.confidence", -1)):
        values = [sign * confidence[image["key"]] for image in all_images(page, order=order)]
        assert values == sorted(values)
    whole = all_images(page)
    parts = [get(page, "/api/images", limit=3, offset=offset)["images"] for offset in range(0, len(whole), 3)]
    assert [image for part in parts for image in part] == whole


def test_histogram_counts_the_images_of_the_conditions(page: TestClient, world: World) -> None:
    for store in get(page, "/api/about")["stores"]:
        for column in store["columns"]:
            found = get(page, "/api/histogram", column=f"{store['name']}.{column}", f=["split=train"])
            joined = f'images JOIN "{store["name"]}" AS labels USING (id)'
            sql = f"SELECT count(labels.\"{column}\") FROM {joined} WHERE split = 'train'"
            there = page.post("/api/sql", json={"sql": sql}).json()["rows"][0][0]
            assert sum(found["counts"]) == there, (store["name"], column)


def test_histogram_counts_what_a_condition_on_a_bar_selects(page: TestClient, world: World) -> None:
    teacher = teachers(world)[0]
    found = get(page, "/api/histogram", column=f"{teacher}.confidence")
    for place, count in enumerate(found["counts"]):
        low, high = found["edges"][place : place + 2]
        last = "<=" if place == len(found["counts"]) - 1 else "<"
        conditions = [f"{teacher}.confidence>={low!r}", f"{teacher}.confidence{last}{high!r}"]
        assert len(all_images(page, *conditions)) == pytest.approx(count, abs=1)  # float32 against float64 at an edge


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "-Infinity"])
def test_histogram_leaves_out_what_is_not_finite(bad: str, world: World, tmp_path: Path) -> None:
    answers = copied(world, tmp_path / "root")
    store = answers.stores[teachers(world)[0]]
    query, column = answers.tables.query, f"{store.name}.confidence"
    with answers.tables.cursor() as cursor:
        cursor.execute(f"UPDATE {store.table} SET confidence = '{bad}'::FLOAT WHERE id % 2 = 0")
    [[finite]] = query(f"SELECT count(*) FROM {store.table} WHERE isfinite(confidence)")
    found = answers.histogram(ImageSelection(), column)
    assert sum(found["counts"]) == finite > 0
    assert np.isfinite(found["edges"]).all()
    with answers.tables.cursor() as cursor:
        cursor.execute(f"UPDATE {store.table} SET confidence = '{bad}'::FLOAT")
    empty = {"kind": "numbers", "whole": False, "edges": [], "counts": []}
    assert answers.histogram(ImageSelection(), column) == empty


@pytest.mark.parametrize(
    ("ends", "edges"),
    [((0, 2), [0, 1, 2, 3]), ((5, 5), [5, 6]), ((1, 41), [*range(1, 42, 3), 42]), ((-1, 0), [-1, 0, 1])],
)
def test_whole_edges_are_whole_and_end_behind_the_largest(ends: tuple[int, int], edges: list[int]) -> None:
    assert whole_edges(*ends).tolist() == edges


def test_histogram_of_whole_numbers_has_whole_bins(page: TestClient, answers: Answers) -> None:
    store = next(store for store in answers.loading.stores.values() if store.label.space.task == "detection")
    found = get(page, "/api/histogram", column=f"{store.name}.count")
    assert found["whole"]
    assert all(isinstance(edge, int) for edge in found["edges"])
    conditions = [f"{store.name}.count>={found['edges'][-2]}", f"{store.name}.count<={found['edges'][-1]}"]
    assert len(all_images(page, *conditions)) == found["counts"][-1]


def test_image_has_the_labels_of_every_store(page: TestClient, world: World) -> None:
    for image in all_images(page)[::7]:
        found = get(page, f"/api/image/{image['key']}")
        assert {name: found[name] for name in image} == image
        for label in found["labels"]:
            assert label["status"] in ("ok", "none", "failed")
            if label["status"] == "ok":
                at = get(page, f"/api/at/{image['key']}", store=label["store"], x=0.5, y=0.5)
                assert isinstance(at["says"], str)


def test_picture_is_drawn_by_the_task(page: TestClient, answers: Answers) -> None:
    key = all_images(page)[0]["key"]
    plain = page.get(f"/api/picture/{key}?side=128")
    shown = Image.open(io.BytesIO(plain.content))
    assert plain.headers["content-type"] == "image/jpeg"
    assert max(shown.size) == 128
    for name, store in answers.loading.stores.items():
        picture = page.get(f"/api/picture/{key}", params={"store": name, "side": 128})
        assert picture.status_code == 200
        value = answers.pictures.value(store, answers.image_id(key), 0.0)
        assert ("no-store" in picture.headers["Cache-Control"]) == (value is None), "a run may add the label"
        if value is not None:
            drawn = store.label.draw(answers.pictures.image(answers.image_id(key), 128), value)
            assert picture.content == as_jpeg(drawn), name


def test_balance_keeps_less_with_a_threshold(page: TestClient, answers: Answers) -> None:
    for name in answers.loading.stores:
        low, high = (get(page, "/api/balance", store=name, threshold=threshold) for threshold in (0.0, 0.9))
        assert low["held"] == high["held"]
        assert not any(isinstance(amount, float) and amount.is_integer() for amount in low["held"])
        assert low["kept"] == low["held"]
        assert np.all(np.array(high["kept"]) <= np.array(low["kept"]))


# What is refused


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/api/images?f=nothing<3", "Column 'nothing' is unknown"),
        ("/api/images?f=no.confidence<3", "Label store 'no' is unknown"),
        ("/api/images?f=width", "no operator"),
        ("/api/images?f=width<wide", "'wide' is no number"),
        ("/api/images?order=nothing", "Column 'nothing' is unknown"),
        ("/api/balance?store=no", "no label store 'no'; there are boxes, boxes-"),
        ("/api/images?f=labelled=maybe", "write labelled=yes or labelled=no"),
        ("/api/images?order=labelled", "can't be ordered by labelled"),
        ("/api/histogram?column=labelled", "'labelled' has no histogram"),
        ("/api/histogram?column=no.x", "Label store 'no' is unknown"),
    ],
)
def test_error_response_says_what_is_wrong_with_a_link(page: TestClient, path: str, says: str) -> None:
    answer = page.get(path)
    assert answer.status_code in (400, 422)
    assert says in answer.json()["error"]


@pytest.mark.parametrize("threshold", ["0.5", ":0.5", "things", "things:much", "things:nan"])
def test_parse_thresholds_refuses_what_names_no_store_and_number(page: TestClient, threshold: str) -> None:
    answer = page.get("/api/images", params={"t": threshold})
    assert answer.status_code == 400
    assert repr(threshold) in answer.json()["error"]


@pytest.mark.parametrize("key", ["0123456789abcdef", "x", "%2e%2e%2fmanifest.json", "-1", "f" * 40])
def test_error_response_for_an_unknown_image(page: TestClient, key: str) -> None:
    for path in (f"/api/image/{key}", f"/api/picture/{key}"):
        answer = page.get(path)
        assert answer.status_code in (400, 404)


def test_guard_refuses_pages_of_other_sites_and_other_hosts(page: TestClient) -> None:
    assert page.get("/api/about", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert page.get("/api/about", headers={"Host": "evil.example"}).status_code == 403
    assert page.get("/api/about", headers={"Host": "localhost:9999"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "http://localhost:9999"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://must.example", "X-Forwarded-Host": "must.example"}, 200),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_guard_looks_at_the_origin_where_a_browser_does_not_name_the_site(
    page: TestClient, headers: dict[str, str], status: int
) -> None:
    assert page.get("/api/about", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("path", "dest", "status"),
    [("/", "document", 200), ("/", "iframe", 403), ("/", "image", 403), ("/api/about", "document", 403)],
)
def test_guard_lets_links_on_other_pages_open_the_page_itself(
    page: TestClient, path: str, dest: str, status: int
) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": dest}
    assert page.get(path, headers=headers).status_code == status


@pytest.mark.parametrize("token", ["", "short", "x" * 15, "long enough, not of ASCII: é", "with a\nline break..."])
def test_guard_refuses_tokens_that_are_easy_to_guess(token: str, answers: Answers, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a token takes at least 16 printable characters of ASCII") as raised:
        create_app(answers, token)
    offered = str(raised.value).split("Take this: ")[1]
    assert check_token(offered, "--token") == offered
    (tmp_path / "token").write_text(f" {token}\n", "utf-8")
    with pytest.raises(ConfigError, match=r"--token-file .*token: a token takes"):
        read_token(tmp_path / "token")


def test_read_token_takes_a_file_without_its_line_break(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\n")
    assert read_token(tmp_path / "token") == SECRET
    with pytest.raises(ConfigError, match=r"--token-file .*missing can't be read: .*No such file"):
        read_token(tmp_path / "missing")


def test_guard_with_a_token_answers_only_with_it(answers: Answers) -> None:
    with TestClient(create_app(answers, SECRET), "http://localhost") as page:
        assert page.get("/api/about").status_code == 403
        assert page.get("/").status_code == 403
        assert page.get("/page/app.js").status_code == 403
        assert page.get("/api/about?token=wrong").status_code == 403
        assert page.get("/api/about?token=").status_code == 403
        link = f"/api/about?{urlencode({'token': SECRET})}"
        assert page.get(link, headers={"Host": "machine:8800"}).status_code == 200
        assert page.get("/api/about").status_code == 200, "the cookie is enough from now on"
        assert SECRET not in str(page.cookies.jar)


def test_create_app_serves_the_page_and_no_other_file(page: TestClient) -> None:
    answer = page.get("/")
    assert "<title>must browse</title>" in answer.text
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page/"):
        assert page.get(path).status_code in (404, 405)


def test_shards_are_listed_with_the_state_of_their_labels(page: TestClient, world: World) -> None:
    teacher = teachers(world)[0]
    found = get(page, "/api/shards", store=teacher)
    assert found["total"] == len(found["rows"]) > 1
    rows = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
    assert sum(row["images"] for row in rows) == len(all_images(page))
    labelled = [row for row in rows if row["labels"]]
    assert sum(row["labels"] for row in rows) == len(rows_of_status(world, teacher, "ok"))
    assert all(0 <= row["mean confidence"] <= 1 and row["wrong"] == "" for row in labelled)
    one = labelled[0]
    assert len(all_images(page, *(f"{name}={one[name]}" for name in ("set", "split", "shard")))) == one["images"]


def rows_of_status(world: World, teacher: str, status: str) -> list[dict[str, Any]]:
    return [row for row in rows(world, teacher) if row["status"] == status]


def test_image_shows_a_damaged_label_as_such(world: World, tmp_path: Path) -> None:
    loading = copied(world, tmp_path / "root").loading
    teacher = teachers(world)[0]
    [store] = [name for name in loading.stores if name.rpartition("-")[0] == teacher]
    with TestClient(create_app(Answers(loading)), "http://localhost") as page:
        key = all_images(page)[0]["key"]
        sound = page.get(f"/api/picture/{key}?store={store}").content
        for file in (tmp_path / "root" / "labels" / store).iterdir():
            data = bytearray(file.read_bytes())
            data[len(data) // 3] ^= 0xFF
            file.write_bytes(data)
    with TestClient(create_app(Answers(loading)), "http://localhost") as page:
        broken = page.get(f"/api/picture/{key}?store={store}")
        assert broken.status_code == 200
        assert broken.content != sound
        assert broken.headers["Cache-Control"] == "no-store"
        [label] = [label for label in get(page, f"/api/image/{key}")["labels"] if label["store"] == store]
        assert label["status"] == "damaged"
        assert "its bytes changed since it was made" in label["reason"]
        assert any(store in file for file in get(page, "/api/about")["damaged"]), "and among the files of Health"
        assert "its bytes changed" in get(page, "/api/shards", store=store)["rows"][0][-1], "the worst comes first"
