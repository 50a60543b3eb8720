"""Every command and every recipe on the pages is run or parsed, or says why not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from cli.main import app, main
from pipeline.errors import PROJECT
from pipeline.recipe.reader import parse_recipe
from tests.docs.pages import PAGES, Block, blocks, commands_of
from tests.docs.small_world import base, merge, shrink, write_folders
from tests.waiting import wait_until

BIN = Path(sys.executable).parent
TUTORIAL = "docs/tutorial.md"
ELSEWHERE = {"docs/how-to/deployment.md": "tests/flows/test_deployments.py"}
"""Pages whose commands another test runs, for they need servers."""
RECIPE_FIRST = {"docs/how-to/compare.md"}
"""Pages that begin with commands on the recipe that they show below."""
SLOW = {"docs/how-to/compare.md", "README.md"}
"""Pages that train many networks."""
RUN = [page for page in PAGES if page not in (TUTORIAL, *ELSEWHERE) and any(commands_of(page))]
ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
YAML = [block for block in ALL_BLOCKS if block.language == "yaml" and not block.not_run]


def name_of(block: Block) -> str:
    return f"{block.page}:{block.line}"


class Scenario:
    """One page's commands and recipes, carried out in order in a folder that has what they name."""

    def __init__(self, page: str, folder: Path) -> None:
        self.page, self.folder = page, folder
        self.recipe = base()
        self.write_recipe()

    def write_recipe(self) -> None:
        (self.folder / "mine.yaml").write_text(yaml.safe_dump(shrink(self.recipe), sort_keys=False), "utf-8")

    def carry_out(self) -> None:
        steps = blocks(self.page)
        if self.page in RECIPE_FIRST:
            steps.sort(key=lambda block: block.language != "yaml")
        for block in steps:
            if block.not_run:
                continue
            if block.language == "yaml":
                self.recipe = merge(self.recipe, yaml.safe_load(block.text))
                self.write_recipe()
            elif block.language == "bash":
                for command in block.commands():
                    self.run(command, name_of(block))

    def run(self, command: str, where: str) -> None:
        """Run one command; a recipe that `must init` would write makes way and comes back."""
        initial = command.startswith("must init")
        if initial:
            (self.folder / "mine.yaml").unlink()
        run_here(command, self.folder, where)
        if initial:
            self.write_recipe()


def run_here(command: str, folder: Path, where: str) -> None:
    """Run `must` in this process, which has torch loaded, one-line programs in another, everything else in a shell."""
    words = shlex.split(command, comments=True)
    if words[:2] == ["python", "-c"]:
        subprocess.run([sys.executable, *words[1:]], cwd=folder, check=True)
    elif words[0] == "must" and words[1] != "browse":
        with contextlib.chdir(folder), pytest.raises(SystemExit) as ended:
            main(words[1:])
        assert not ended.value.code, f"{where}: {command}: ended with {ended.value.code}"
    else:
        run_in_shell(command, folder, where)


def run_in_shell(command: str, folder: Path, where: str) -> None:
    """Run a command as a user does; `must browse` until its page was looked at."""
    words = shlex.split(command, comments=True)
    if words[:2] == ["must", "browse"]:
        open_page(words[2:], folder)
    else:
        shell(command, folder, where)


def open_page(arguments: list[str], folder: Path) -> None:
    """Start `must browse`, look at the page that it serves, and end it."""
    command = [str(BIN / "must"), "browse", *arguments, "--port", str(free_port())]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        address = re.search(r"http://\S+", process.stdout.readline())
        assert address
        wait_until(lambda: b"<title>" in content(address.group()), process)
    finally:
        process.terminate()
        process.wait()


def content(address: str) -> bytes:
    """Return what a server answers; nothing while it is not up."""
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=60) as answer:
        body: bytes = answer.read()
        return body
    return b""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def shell(command: str, folder: Path, where: str) -> str:
    """Run a command as a user does, with the environment's commands on the path; return what it printed."""
    environ = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "160"}
    done = subprocess.run(
        ["bash", "-euc", command], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{where}: {command}: ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, labelled sets and a root in which the base recipe has been run."""
    folder = tmp_path_factory.mktemp("pages")
    write_folders(folder)
    (folder / "must-root").mkdir()
    scenario = Scenario("", folder)
    scenario.run("must run mine.yaml --to evaluate", "the base recipe")
    return folder


@pytest.fixture
def page_folder(small_world: Path, tmp_path: Path) -> Path:
    """A folder of a page's own, which shares images and root with the others."""
    for name in ("photos", "labelled", "must-root"):
        (tmp_path / name).symlink_to(small_world / name)
    Scenario("", tmp_path).run("must run mine.yaml --to evaluate", "the base recipe, by paths in this folder")
    return tmp_path


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in RUN])
def test_commands_of_page_run(page: str, page_folder: Path) -> None:
    Scenario(page, page_folder).carry_out()


@pytest.mark.parametrize("block", YAML, ids=name_of)
def test_recipes_of_pages_parse(block: Block) -> None:
    said = yaml.safe_load(block.text)
    whole = said if "name" in said else merge(base(), said)
    parse_recipe(yaml.safe_dump(whole), name_of(block))


def test_shell_and_recipe_blocks_say_what_they_are() -> None:
    """A block without a language is text; a command or a recipe in one would not be checked."""
    unnamed = [name_of(block) for block in ALL_BLOCKS if not block.language and "must run" in block.text]
    assert not unnamed, unnamed


@pytest.mark.parametrize("page", ELSEWHERE)
def test_pages_run_elsewhere_are_read_there(page: str) -> None:
    assert page.rpartition("/")[2] in (PROJECT / ELSEWHERE[page]).read_text("utf-8")


def test_deployment_page_lists_the_parameters_of_all_flows() -> None:
    from flows import deployments  # noqa: PLC0415 - loads Prefect

    common = {"recipe", "root", "overrides", "device", "workers"}
    page = (PROJECT / "docs/how-to/deployment.md").read_text("utf-8")
    rows = re.findall(r"^\| `must/([a-z-]+)` \|[^|]*\| (.*) \|$", page, flags=re.MULTILINE)
    listed = {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in rows}
    flows = {name: getattr(deployments, name.replace("-", "_")) for name in listed}
    assert listed == {name: set(flow.parameters.properties) - common for name, flow in flows.items()}
    deployed = yaml.safe_load((PROJECT / "prefect.yaml").read_text("utf-8"))["deployments"]
    assert len(listed) == len(deployed)


@pytest.mark.parametrize("block", [block for block in ALL_BLOCKS if block.language == "bash"], ids=name_of)
def test_must_commands_of_pages_exist(block: Block) -> None:
    """Also those that are not run: each parses with the arguments and options that `must` has now."""
    for command in block.commands():
        words = shlex.split(command, comments=True)
        if words and words[0] == "must":
            parse_command(words[1:], command)


def parse_command(words: list[str], command: str) -> None:
    """Read a command's arguments as typer does, without calling it."""
    known: Any = typer.main.get_command(app)
    while hasattr(known, "commands"):
        assert words[0] in known.commands, f"{command}: there is no {words[0]!r}"
        known, words = known.commands[words[0]], words[1:]
    known.make_context(known.name, list(words))


class Tutorial:
    """The tutorial in a folder of its own: files are saved, commands and programs run."""

    def __init__(self, folder: Path, run: Callable[[str, Path, str], object]) -> None:
        self.folder, self.run = folder, run

    def carry_out(self, shrunk: bool) -> None:
        for block in blocks(TUTORIAL):
            if block.title:
                text = shrunk_text(block) if shrunk and block.language == "yaml" else block.text
                (self.folder / block.title).write_text(text, "utf-8")
            elif block.language == "bash" and not block.not_run:
                for command in block.commands():
                    self.run(command, self.folder, name_of(block))
            elif block.language == "python":
                self.run(f"python -c {shlex.quote(block.text)}", self.folder, name_of(block))


def shrunk_text(block: Block) -> str:
    return yaml.safe_dump(shrink(yaml.safe_load(block.text)), sort_keys=False)


def test_tutorial_runs_with_few_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Tutorial(tmp_path, run_here).carry_out(shrunk=True)
    told = next(block.text for block in blocks(TUTORIAL) if block.language == "text")
    assert told in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tutorial_learns_what_it_says(tmp_path: Path) -> None:
    Tutorial(tmp_path, run_in_shell).carry_out(shrunk=False)
    (file,) = tmp_path.glob("must-root/runs/*/metrics.json")
    metrics = json.loads(file.read_text("utf-8"))
    for head, metric in (("surfaces", "accuracy"), ("coins", "miou")):
        found = {each["model"]: each["value"] for each in metrics if (each["head"], each["metric"]) == (head, metric)}
        assert min(found["student"], found[f"teacher:{head}"]) > found["baseline"] + 0.2, found
