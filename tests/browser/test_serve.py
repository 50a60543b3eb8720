"""Starting the browser: ports and tokens, roots elsewhere and of other versions, and a run that is writing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from browser.answers import Answers
from browser.app import create_app
from browser.catalogue import root_above
from browser.filters import ImageSelection
from browser.loading import Loading
from browser.serve import serve
from pipeline.errors import ConfigError
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root
from pipeline.stores.rejections import read_rejections
from tests.conftest import World
from tests.flows.tiny import RECIPE
from tests.waiting import wait_until

LABELLED = 48
"""Images that the tiny recipe labels."""


@pytest.fixture
def root(world: World, tmp_path: Path) -> Path:
    """Return a copy of the tiny world's root."""
    return Path(shutil.copytree(Path(world.workspace.root.path), tmp_path / "root", copy_function=shutil.copy))


def test_serve_names_a_free_port_if_the_port_is_taken(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Port {port} is taken: --port \d+ is free\.") as raised:
            serve(str(root), "127.0.0.1", port, None)
        free = int(str(raised.value).split("--port ")[1].split()[0])
        with socket.create_server(("127.0.0.1", free)):
            pass


@pytest.mark.parametrize("secret", [None, "16 & more signs=?"])
def test_serve_gives_other_machines_a_link_with_a_token(root: Path, secret: str | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cli", "browse", str(root), "--port", str(port), "--host", "0.0.0.0"]
    environment = {name: value for name, value in os.environ.items() if name != "MUST_TOKEN"}
    environment |= {"MUST_TOKEN": secret} if secret else {}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as page:
        assert page.stdout
        link = next(word for word in page.stdout.readline().split() if word.startswith("http"))
        (token,) = parse_qs(urlsplit(link).query)["token"]
        assert token == secret if secret else re.fullmatch(r"[\w-]{32}", token)
        wait_until(lambda: status_of(port, "") == 403)
        assert status_of(port, f"?{urlsplit(link).query}") == 200
        page.terminate()


def status_of(port: int, query: str) -> int | None:
    """Return the status of the server's answer, None if it does not answer yet."""
    try:
        with urllib.request.urlopen(f"http://localhost:{port}/api/about{query}") as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_serve_leaves_no_tables_when_it_ends(root: Path, tmp_path: Path, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "scratch").mkdir()
    command = [sys.executable, "-m", "cli", "browse", str(root), "--port", str(port)]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as page:
        assert page.stdout
        assert page.stderr
        assert f"http://localhost:{port}/" in page.stdout.readline()
        wait_until(lambda: answers(port))
        page.send_signal(number)
        assert not page.stderr.read(), "it ends without a word"
    left = list((tmp_path / "scratch").rglob("*"))
    assert not [path for path in left if path.suffix == ".duckdb"]
    assert number == signal.SIGKILL or not left


def answers(port: int) -> bool:
    """Return True if a page answers at the port."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/api/about") as answer:
        return bool(answer.status == HTTPStatus.OK)
    return False


def test_root_above_finds_the_root_of_a_store(root: Path) -> None:
    store = next((root / "labels").iterdir()).name
    found, below = root_above(StoragePath.of(str(root / "labels" / store)))
    assert (str(found), below) == (str(root), f"labels/{store}")


def test_loading_names_the_version_that_newer_artifacts_need(root: Path) -> None:
    manifest = next((root / "artifacts").glob("data.*/*/manifest.json"))
    manifest.write_text(json.dumps({**json.loads(manifest.read_text("utf-8")), "schema": 99}), "utf-8")
    with pytest.raises(ConfigError, match=r"with schema 99; this is must .*, which reads schema \d+"):
        Loading(Root.of(root))


def test_loading_reports_labels_of_a_newer_version_and_loads_all_others(root: Path) -> None:
    file = sorted((root / "labels").glob("*/*.parquet"))[0]
    table = pq.read_table(file)
    about = {**json.loads(table.schema.metadata[b"must"]), "schema_version": 99}
    pq.write_table(table.replace_schema_metadata({"must": json.dumps(about)}), file)
    for artifact in root.glob("artifacts/label*"):  # it knows the file's hash, and would call it changed
        shutil.rmtree(artifact)
    loading = Loading(Root.of(root))
    loading.refresh()
    assert loading.progress.loaded == loading.progress.found, "there is nothing to wait for"
    assert "label schema version 99; this version reads " in loading.progress.damaged[str(file)]


def test_refresh_drops_images_that_are_gone_and_finds_them_again(root: Path, tmp_path: Path) -> None:
    loading = Loading(Root.of(root))
    loading.refresh()
    answers = Answers(loading)
    counts = "SELECT count(*), (SELECT count(*) FROM masks) FROM images"
    before, about = answers.sql(counts)["rows"], answers.about()
    gone = "pool" if (root / "artifacts" / "data.pool").exists() else about["sets"][0]["name"]
    dropped = sum(each["images"] for each in about["sets"] if each["name"] == gone)
    shutil.move(root / "artifacts" / f"data.{gone}", tmp_path / "elsewhere")
    loading.refresh()
    assert answers.about()["images"] == about["images"] - dropped
    (images, labels), (images_before, labels_before) = answers.sql(counts)["rows"][0], before[0]
    assert images == images_before - dropped
    assert labels < labels_before
    shutil.move(tmp_path / "elsewhere", root / "artifacts" / f"data.{gone}")
    loading.refresh()
    assert answers.sql(counts)["rows"] == before
    assert answers.about()["images"] == about["images"]
    image = answers.images(ImageSelection([f"set={gone}"]), 1, 0)["images"][0]
    assert answers.image(image["key"], {})["labels"]


def test_refresh_reads_an_image_shard_again_that_was_damaged(root: Path) -> None:
    index = sorted((root / "artifacts").glob("data.*/*/**/shard-*.parquet"))[0]
    content = index.read_bytes()
    index.write_bytes(content[:-9] + b"x" * 9)
    loading = Loading(Root.of(root))
    loading.refresh()
    assert str(index) in loading.progress.damaged
    index.write_bytes(content)
    loading.refresh()
    assert loading.progress.damaged == {}


def test_loading_reads_a_root_in_a_bucket_and_rejects_in_it(bucket: str, root: Path) -> None:
    from tests.s3 import system  # noqa: PLC0415 - loads the server

    for folder in ("artifacts", "labels"):
        system().put(str(root / folder), f"{bucket.removeprefix('s3://')}/root/", recursive=True)
    found, _ = root_above(StoragePath.of(f"{bucket}/root/labels"))
    pages = []
    for where in (found, Root.of(root)):
        loading = Loading(where)
        loading.refresh()
        assert not loading.progress.damaged
        pages.append(Answers(loading))
    remote, local = (answers.images(ImageSelection(), 1000, 0) for answers in pages)
    assert remote == local
    key = remote["images"][0]["key"]
    [one, other] = [answers.image(key, {})["labels"] for answers in pages]
    assert one == other
    with TestClient(create_app(pages[0]), "http://localhost") as page:
        store = one[0]["store"]
        assert page.get(f"/api/picture/{key}", params={"store": store}).status_code == 200
        assert page.post("/api/reject", json={"keys": [key], "reason": "blurred"}).json()["count"] == 1
        assert page.get("/api/images", params={"f": "rejected=yes"}).json()["total"] >= 1
    assert read_rejections(found).column("key").to_pylist() == [key]


@pytest.mark.slow
def test_refresh_loads_what_a_run_is_writing(tmp_path: Path) -> None:
    """The page is open from the first images on, and no file that is half written counts as damaged."""
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    command = [sys.executable, "-m", "cli", "run", "tiny.yaml", "--to", "label"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as run:
        root = tmp_path / "must-root"
        wait_until(lambda: list(root.glob("artifacts/data.*/*/manifest.json")))
        loading, seen = Loading(Root.of(root)), [0]
        while run.poll() is None:
            loading.refresh()
            assert not loading.progress.damaged
            seen.append(
                sum(len(loading.label_files(store.name)) for store in loading.catalogue.stores if store.is_learned)
            )
            time.sleep(0.05)
        loading.refresh()
    assert run.returncode == 0
    assert seen == sorted(seen)
    answers = Answers(loading)
    for store in ("masks", "gabor"):
        assert answers.images(ImageSelection([f"{store}.status=ok"]), 100, 0)["total"] == LABELLED
