"""The commands `must store` on a tiny world, and their error messages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from tests.conftest import World


@pytest.fixture
def root(world: World, tmp_path: Path) -> Path:
    """Return a copy of the tiny world's root."""
    shutil.copytree(Path(world.workspace.root.path), tmp_path / "root", copy_function=shutil.copy)
    return tmp_path / "root"


def run_store(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run a command of `must store`, and return its exit code and output."""
    with pytest.raises(SystemExit) as ended:
        main(["store", *arguments])
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out + printed.err


def run_store_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code, text = run_store(capsys, *arguments, "--json")
    assert code == 0, text
    return json.loads(text)


def list_stores(capsys: pytest.CaptureFixture[str], root: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run_store_json(capsys, "ls", "--root", str(root))
    return found


def test_store_ls_and_info_show_every_store(root: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    found = list_stores(capsys, root)
    teachers = {name.removeprefix("teacher.") for name in world.artifacts if name.startswith("teacher.")}
    assert {each["maker"] for each in found if each["learned"]} == teachers
    assert len(list((root / "labels").iterdir())) == len(teachers)
    _, listed = run_store(capsys, "ls", "--root", str(root))
    for each in found:
        assert each["name"] in listed
        about = run_store_json(capsys, "info", each["name"], "--root", str(root))
        assert about["counts"] == each["counts"]
        least, mean, most = about["ranges"]["confidence"]
        assert 0 <= least <= mean <= most <= 1
    code, text = run_store(capsys, "info", found[0]["name"], "--root", str(root))
    assert (code, found[0]["task"] in text) == (0, True)


def test_store_ls_accepts_a_folder_inside_a_root(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for below in ("labels", "artifacts", f"labels/{next((root / 'labels').iterdir()).name}"):
        assert list_stores(capsys, root / below) == list_stores(capsys, root)


def test_store_sql_answers_a_query(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = list_stores(capsys, root)[0]["name"]
    query = f'SELECT key, confidence FROM images JOIN "{name}" USING (id) ORDER BY confidence DESC, key LIMIT 3'
    rows = run_store_json(capsys, "sql", query, "--root", str(root))
    assert len(rows) == 3
    assert rows[0]["confidence"] >= rows[2]["confidence"]
    code, text = run_store(capsys, "sql", query, "--root", str(root))
    assert (code, rows[0]["key"] in text) == (0, True)
    code, text = run_store(capsys, "sql", "DROP TABLE placed", "--root", str(root))
    assert code == 2
    assert "Only one SELECT is answered" in text


def test_store_diff_compares_two_stores(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores = list_stores(capsys, root)
    one, other = next(
        (one["name"], other["name"])
        for one in stores
        for other in stores
        if one is not other and (one["task"], one["classes"]) == (other["task"], other["classes"])
    )
    found = run_store_json(capsys, "diff", one, other, "--most", "2", "--root", str(root))
    assert found["images"] == sum(count for _, count in found["counts"]) > 0
    assert 0 <= found["mean"] <= 1
    assert len(found["most"]) == 2
    code, text = run_store(capsys, "diff", one, other, "--root", str(root))
    assert (code, found["most"][0][1] in text) == (0, True)
    code, text = run_store(capsys, "diff", one, one, "--root", str(root))
    assert (code, "can't be compared" in text) == (2, True)


def test_store_show_finds_an_image_by_its_key(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [row] = run_store_json(capsys, "sql", "SELECT key, source FROM images LIMIT 1", "--root", str(root))
    found = run_store_json(capsys, "show", row["key"], "--root", str(root))
    assert found["source"] == row["source"]
    assert {label["store"] for label in found["labels"]}
    code, text = run_store(capsys, "show", row["key"], "--root", str(root))
    assert (code, row["source"] in text) == (0, True)
    code, text = run_store(capsys, "show", "0" * 16, "--root", str(root))
    assert (code, "There is no image" in text) == (3, True)


@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_store_verify_names_a_damaged_file(root: Path, capsys: pytest.CaptureFixture[str], harm: str) -> None:
    assert run_store(capsys, "verify", "--root", str(root))[0] == 0
    file = sorted((root / "labels").glob("*/*.parquet"))[0]
    data = bytearray(file.read_bytes())
    if harm == "cut":
        file.write_bytes(data[:-40])
    else:
        data[len(data) // 3] ^= 0xFF
        file.write_bytes(data)
    code, text = run_store(capsys, "verify", "--root", str(root))
    assert code == 3
    assert file.name in text
    code, text = run_store(capsys, "ls", "--root", str(root))
    assert code == 0, "the others are listed"


def test_store_commands_name_what_is_missing(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run_store(capsys, "info", "nobody", "--root", str(root))
    assert (code, "There is no label store 'nobody'; there are " in text) == (2, True)
    (tmp_path / "empty").mkdir()
    code, text = run_store(capsys, "ls", "--root", str(tmp_path / "empty"))
    assert (code, "looked for labels/" in text) == (2, True)
    code, text = run_store(capsys, "ls", "--root", str(tmp_path / "nowhere"))
    assert (code, "There is no folder" in text) == (2, True)
