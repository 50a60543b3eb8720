"""A user's own files may have the names of our packages: the command works beside them, and `import must` says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import must
from flows.orchestration import task_runners
from pipeline.errors import PROJECT, ConfigError
from tests.flows.tiny import RECIPE
from tests.run_fixtures import add_database
from tests.test_architecture import PACKAGES

IMPORT = "import must; print(must.__version__)"
ENVIRON = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
    "PYTHONPATH": str(PROJECT),
}


def run(folder: Path, *arguments: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with our source at the end of its path."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=ENVIRON,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_packages_are_those_of_the_project() -> None:
    assert {*must.PACKAGES, "cli"} == {*task_runners.PACKAGES, "cli"} == set(PACKAGES)


@pytest.mark.parametrize("name", ["pipeline.py", "tasks.py", "student/__init__.py", "flows/mine.py"])
def test_import_must_names_the_file_that_hides_a_package(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    if name == "flows/mine.py":  # Python passes over a folder that is no package if there is one further on
        assert run(tmp_path, "-c", IMPORT).stdout == f"{must.__version__}\n"
        return
    failed = run(tmp_path, "-c", IMPORT)
    package = name.partition("/")[0].removesuffix(".py")
    assert failed.returncode == 1
    assert f"ImportError: {file} hides the package {package!r} of must, because Python looks in" in failed.stderr
    assert "Rename it, or keep its folder off Python's path" in failed.stderr
    assert run(tmp_path, "-P", "-c", IMPORT).stdout == f"{must.__version__}\n", "what the message advises"


def test_import_must_in_a_script_beside_a_file_that_was_imported_before(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("mine = 1", "utf-8")
    (tmp_path / "script.py").write_text(f"import tasks; tasks.mine; {IMPORT}", "utf-8")
    failed = run(PROJECT, str(tmp_path / "script.py"))
    assert f"{tmp_path / 'tasks.py'} hides the package 'tasks' of must" in failed.stderr


def test_command_runs_steps_beside_files_of_every_package_name(tmp_path: Path, prefect_database: Path) -> None:
    """Steps run in processes of their own, which a fork server starts."""
    add_database(tmp_path / "root", prefect_database)
    for name in (*PACKAGES, "must"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('imported {name}')", "utf-8")
    (tmp_path / "tiny.yaml").write_text(RECIPE, "utf-8")
    command = "from cli.main import main; main()"
    arguments = ("run", "tiny.yaml", "--root", "root", "--to", "teacher.gabor", "-o", "runtime.runner=threads")
    done = run(tmp_path, "-P", "-c", command, *arguments, timeout=300)  # as the installed script: without its folder
    assert done.returncode == 0, done.stderr + done.stdout
    assert "imported" not in done.stderr + done.stdout
    assert list(tmp_path.glob("root/artifacts/teacher.gabor/*/manifest.json"))


def test_ray_runner_refuses_a_folder_whose_files_hide_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task_runners._check_current_folder()
    (tmp_path / "tasks.py").touch()
    with pytest.raises(ConfigError, match=r"ray's workers import from .* and .*tasks\.py hides the package 'tasks'"):
        task_runners._check_current_folder()
    monkeypatch.chdir(PROJECT)
    task_runners._check_current_folder()
