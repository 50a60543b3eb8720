"""Weights files: found by path and inside installed packages, told apart by their content."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.models.weights import find_weights, weights_digest
from pipeline.recipe.stage import names_weights
from pipeline.steps.artifact import hash_file


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package `weights_of_mine` with two files of weights."""
    folder = tmp_path / "site" / "weights_of_mine"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").touch()
    for name in ("b.pth", "a.pth"):
        (folder / "models" / name).write_bytes(name.encode())
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def test_find_weights_of_a_path_is_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"w")
    assert find_weights(str(tmp_path / "w.safetensors")) == tmp_path / "w.safetensors"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_weights("~/w.safetensors") == tmp_path / "w.safetensors"


def test_find_weights_in_a_package_does_not_import_it(package: Path) -> None:
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    assert find_weights("package:weights_of_mine/models/b.pth") == package / "models" / "b.pth"
    assert find_weights("package:weights_of_mine/models/*.pth") == package / "models" / "a.pth"


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("no/such/file.pth", r"'no/such/file\.pth': no such file.*package:<module>/<file>"),
        ("package:no_such_package_here/x.pth", r"'no_such_package_here' is not installed"),
        ("package:weights_of_mine/models/c.pth", r"weights_of_mine holds no file 'models/c\.pth'"),
        ("package:weights_of_mine/models", r"weights_of_mine holds no file 'models'"),
        ("package:weights_of_mine.none/a.pth", r"'weights_of_mine\.none' is not installed"),
        ("package:no_such_package_here.none/a.pth", r"'no_such_package_here\.none' is not installed"),
        ("package:__main__/a.pth", r"'__main__' is not installed"),
        ("~no_such_user_here/w.pth", r"'~no_such_user_here/w\.pth': there is no such user's home"),
        ("a" * 5000, "no such file"),
        ("a\0b", "no such file"),
    ],
)
@pytest.mark.usefixtures("package")
def test_find_weights_names_what_is_missing(where: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        find_weights(where)


@pytest.mark.parametrize(
    "inside", ["", "/", "/.", "//etc/passwd", "/../other.pth", "/models/../../other.pth", "/models/../a.pth"]
)
def test_find_weights_says_how_a_file_in_a_package_is_written(inside: str, package: Path) -> None:
    (package.parent / "other.pth").touch()
    for module in ("weights_of_mine", "..", ".weights_of_mine", ""):
        with pytest.raises(ConfigError, match=r"write package:<module>/<file>, with the file's path inside"):
            find_weights(f"package:{module}{inside}")


@pytest.mark.parametrize("pattern", ["a**b", "a" * 5000])
@pytest.mark.usefixtures("package")
def test_find_weights_refuses_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"is no path or pattern of one"):
        find_weights(f"package:weights_of_mine/{pattern}")


@pytest.mark.parametrize("where", ["~no_such_user_here/w", "a" * 5000, "package:..", "a\0b"])
def test_weights_digest_refuses_what_names_no_file(where: str) -> None:
    with pytest.raises(ConfigError, match=r"^weights '"):
        weights_digest(where)


def test_weights_digest_is_that_of_the_content(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(content)
    one, other, again = (weights_digest(str(tmp_path / name)) for name in "abc")
    assert one == again == hash_file(tmp_path / "a")[:16]
    assert one != other
    (tmp_path / "a").write_bytes(b"3 now")
    assert weights_digest(str(tmp_path / "a")) == hash_file(tmp_path / "a")[:16] != one
    assert [weights_digest(name) for name in ("timm", "torchvision", "hub:a/b")] == ["timm", "torchvision", "hub:a/b"]


def test_weights_digest_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    for name in ("one", "same", "renamed", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("b" if name == "renamed" else "a")).write_bytes(b"2" if name == "other" else b"1")
    one, same, renamed, other = (weights_digest(str(tmp_path / name)) for name in ("one", "same", "renamed", "other"))
    assert one == same
    assert len({one, renamed, other}) == 3


@pytest.mark.parametrize(
    "start",
    ["timm", "model.tar", "mine-v2.safetensors", "./teacher.bin", "~/w", "a/b", "package:p/w.pth", "student.pt"],
)
def test_names_weights_is_true_for_published_weights_and_files(start: str) -> None:
    assert names_weights(start)


@pytest.mark.parametrize(
    "start", ["scratch", "student", "studnt", "first", "stage.first", "stage.Typo", "teacher.pt", "teacher.bin"]
)
def test_names_weights_is_false_for_names_of_steps(start: str) -> None:
    assert not names_weights(start)
