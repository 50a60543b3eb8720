"""The list of timm's models says what timm says, and spares its import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm

from pipeline.errors import ConfigError
from pipeline.models import timm_names
from pipeline.models.timm_models import check_model_name
from pipeline.models.timm_names import LIST, check_timm_name, lines_of_timm

ROOT = Path(__file__).resolve().parents[3]


def test_timm_names_are_those_of_the_installed_timm() -> None:
    """Of another version, the list may lack what is new: `check_timm_name` asks timm then."""
    listed = LIST.read_text(encoding="utf-8").splitlines()
    if timm_names.version() != timm.__version__:
        pytest.skip(f"the list is of timm {timm_names.version()}: python -m pipeline.models.timm_names makes it")
    assert listed == list(lines_of_timm())


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k", "convnext_tiny_in22k"])
def test_check_timm_name_knows_models_tags_and_old_names(name: str) -> None:
    check_timm_name(name)
    check_model_name(name)


@pytest.mark.parametrize("name", ["resnet81", "zebra", "resnet18.a9", "convnext_tiny_in22k.a1", "resnet18.", ""])
def test_check_timm_name_refuses_what_timm_refuses_in_the_same_words(name: str) -> None:
    with pytest.raises(ConfigError) as ours:
        check_timm_name(name)
    with pytest.raises(ConfigError) as timms:
        check_model_name(name)
    assert str(ours.value) == str(timms.value)


def test_check_timm_name_asks_another_timm_than_the_listed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_names, "version", lambda: "0.0.1")
    monkeypatch.setattr(timm_names, "_listed", lambda: {"resnet50": ()})
    check_timm_name("resnet18")
    with pytest.raises(ConfigError, match="timm model 'resnet81' is unknown"):
        check_timm_name("resnet81")


def test_check_timm_name_loads_no_timm() -> None:
    program = (
        "import sys\n"
        "from pipeline.models.timm_names import check_timm_name\n"
        "check_timm_name('resnet18')\n"
        "try:\n"
        "    check_timm_name('resnet81')\n"
        "except Exception as error:\n"
        "    print(error)\n"
        "sys.exit(str({'torch', 'timm', 'prefect'} & set(sys.modules) or ''))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert "timm model 'resnet81' is unknown" in done.stdout
