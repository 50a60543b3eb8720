"""The pack for a GPU machine: images evenly spread, each with its label, and every package that is asked for."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import pack
from pipeline.errors import ConfigError


def test_spread_takes_of_each_class_its_share() -> None:
    files = [Path(f"{name}/{number}") for name in "ab" for number in range(30)]
    found = pack.spread(files, 20)
    assert len({*found}) == 20
    assert sum(file.parent.name == "a" for file in found) == 10
    assert pack.spread(files, 100) == files


def test_requirements_leaves_out_extras(tmp_path: Path) -> None:
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    lines = ["Name: thing", "Requires-Dist: Typing_Extensions>=4", "Requires-Dist: big ; extra == 'all'"]
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("thing-1.0.dist-info/METADATA", "\n".join(lines))
    assert pack.requirements(wheel) == ["typing-extensions"]


def test_check_complete_names_what_is_missing() -> None:
    pack.check_complete({"one": ["torch", "pydantic-core", "hydra-core"]})
    with pytest.raises(ConfigError, match="one needs never-heard-of: add it to CARRIED"):
        pack.check_complete({"one": ["torch", "never-heard-of"]})


def test_pack_images_takes_each_image_with_its_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for number in range(6):
        for file in (
            *(f"camvid/images/train/{number}.jpg", f"camvid/masks/train/{number}.png"),
            *(f"indoor_depth/rgb/lab_{number}.jpg", f"indoor_depth/depth/lab_{number}.png"),
            f"pool/{number}.jpg",
        ):
            (data / file).parent.mkdir(parents=True, exist_ok=True)
            (data / file).write_bytes(b"x")
    for file in ("camvid/classes.json", "indoor_depth/cameras.json"):
        (data / file).write_text("{}")
    monkeypatch.setattr(pack, "ROOMS", {"lab": 2})
    monkeypatch.setattr(pack, "STREETS", {"train": 3})
    monkeypatch.setattr(pack, "PHOTOS", 1)
    pack.pack_images(data, tmp_path / "to")
    found = sorted(str(file.relative_to(tmp_path / "to")) for file in (tmp_path / "to").rglob("*") if file.is_file())
    assert found == [
        "camvid/classes.json",
        *(f"camvid/images/train/{number}.jpg" for number in (0, 2, 4)),
        *(f"camvid/masks/train/{number}.png" for number in (0, 2, 4)),
        "indoor_depth/cameras.json",
        *(f"indoor_depth/depth/lab_{number}.png" for number in (0, 3)),
        *(f"indoor_depth/rgb/lab_{number}.jpg" for number in (0, 3)),
        "pool/0.jpg",
    ]
    assert "clothing is not there" in capsys.readouterr().out
