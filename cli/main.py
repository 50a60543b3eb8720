"""The `must` command."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.artifacts import artifacts
from cli.export import commands as export_commands
from cli.options import Overrides, RecipePath, Root
from cli.store import commands as store_commands
from must import plan, run
from pipeline.storage.root import DEFAULT_ROOT

if TYPE_CHECKING:
    from flows.plan.selection import Selection

# Everything that takes time to import is imported by the command that needs it: help comes at once.
# ruff: noqa: PLC0415

app = typer.Typer(
    name="must",
    help="Multi-task self-training: specialised teachers label a pool of images, one student learns from all of them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(export_commands, name="export")
app.add_typer(store_commands, name="store")
app.add_typer(artifacts, name="artifacts")
To = Annotated[
    str | None, typer.Option("--to", metavar="STEP", help="Go as far as this step.", show_default="all steps")
]
Only = Annotated[
    str | None, typer.Option("--only", metavar="STEP", help="Make this step alone; what it reads has to be there.")
]
From = Annotated[
    str | None, typer.Option("--from", metavar="STEP", help="Make this step and all behind it again, changed or not.")
]
Force = Annotated[
    list[str] | None,
    typer.Option("--force", metavar="STEP", help="Make this step again; what is behind it if its result differs."),
]
LOCALHOST = "127.0.0.1"


def _selection(to: str | None, only: str | None, start: str | None, force: list[str] | None) -> Selection:
    from flows.plan.selection import Selection
    from pipeline.errors import ConfigError

    if only and to:
        raise ConfigError(f"--only {only} makes that step alone: leave out --to {to}, or --only.")
    return Selection(to, only, start, tuple(force or ()))


@app.command("run")
def run_command(
    recipe: RecipePath,
    root: Root = DEFAULT_ROOT,
    override: Overrides = None,
    to: To = None,
    only: Only = None,
    start: From = None,
    force: Force = None,
) -> None:
    """Run a recipe: every step whose result is not there yet."""
    from cli.console import Console

    console, stop = Console(), threading.Event()
    with console.progress(stop) as progress:
        outcome = run(recipe, root, override, _selection(to, only, start, force), progress=progress, stop=stop)
    console.show_outcome(outcome)


@app.command("label")
def label_command(recipe: RecipePath, root: Root = DEFAULT_ROOT, override: Overrides = None) -> None:
    """Run a recipe as far as the labels: what the teachers say of the pool."""
    from cli.console import Console
    from flows.plan.selection import Selection

    console, stop = Console(), threading.Event()
    with console.progress(stop) as progress:
        outcome = run(recipe, root, override, Selection("label"), progress=progress, stop=stop)
    console.show_outcome(outcome)


@app.command("compare")
def compare_command(
    recipe: RecipePath,
    name: Annotated[str | None, typer.Argument(help="A comparison, as under `compare`.", show_default="all")] = None,
    root: Root = DEFAULT_ROOT,
    override: Overrides = None,
    plan_only: Annotated[bool, typer.Option("--plan", help="Show what there is to do, and do nothing.")] = False,
) -> None:
    """Compare self-supervised methods as the recipe's `compare` says, and say which of them are worth their time."""
    from cli.console import Console
    from flows.plan.selection import Selection
    from pipeline.errors import ConfigError, require_one_of
    from pipeline.recipe.comparison import COMPARE
    from pipeline.recipe.reader import read_recipe

    there = read_recipe(recipe, override or ()).compare
    if not there:
        raise ConfigError(
            f"{recipe}: has no section `compare`. Add one, for example compare: {{first: {{data: [...], methods: "
            "{simclr: {method: simclr}, dino: {method: dino}}}}."
        )
    last = f"{COMPARE}.{require_one_of(name, there, 'Comparison')}" if name else COMPARE
    if plan_only:
        Console().show_plan(plan(recipe, root, override, Selection(last)))
        return
    console, stop = Console(), threading.Event()
    with console.progress(stop) as progress:
        outcome = run(recipe, root, override, Selection(last), progress=progress, stop=stop)
    console.show_outcome(outcome)


@app.command("plan")
def plan_command(
    recipe: RecipePath,
    root: Root = DEFAULT_ROOT,
    override: Overrides = None,
    to: To = None,
    only: Only = None,
    start: From = None,
    force: Force = None,
) -> None:
    """Show what a run would do, and why."""
    from cli.console import Console

    Console().show_plan(plan(recipe, root, override, _selection(to, only, start, force)))


@app.command("init")
def init_command(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders with images, labelled or not.")],
    to: Annotated[Path, typer.Option("--to", help="The recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe for the folders it is shown."""
    from cli.init import write_recipe

    for line in write_recipe(folders, to):
        print(line)
    print(f"Wrote {to}. Next: must plan {to}")


@app.command("doctor")
def doctor_command(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Look at its data and models as well.")
    ] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Show environment and versions, check a recipe's data and models; ends with 2 if something is wrong."""
    from cli.doctor import examine

    sound = True
    for fine, what, found in examine(root, recipe):
        sound &= fine
        print(f"{'ok ' if fine else 'BAD'} {what:<34} {found}", flush=True)
    if not sound:
        raise typer.Exit(2)


@app.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from cli.schema import schema

    print(schema())


@app.command("up")
def up_command(
    at_once: Annotated[
        int | None, typer.Option("--at-once", min=1, help="Runs at work at once; the others wait.", show_default="1")
    ] = None,
) -> None:
    """Start Prefect's server and a worker in the background, with the deployments of this project."""
    from cli.console import Console
    from flows.server.commands import up

    Console().show_up(up(at_once, print))


@app.command("down")
def down_command(
    now: Annotated[bool, typer.Option("--now", help="Stop the runs at work; they are saved.")] = False,
) -> None:
    """End the server and the worker that `must up` started."""
    from flows.server.commands import down

    ended = down(now, print)
    print(f"Ended: {', '.join(ended)}." if ended else "Nothing was up.")


@app.command("status")
def status_command(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show what `must up` started, and what is at work."""
    import json

    from cli.console import Console
    from flows.server.commands import status

    found = status()
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        Console().show_status(found)


@app.command("browse")
def browse_command(
    path: Annotated[str, typer.Argument(metavar="[ROOT_OR_STORE]", help="A root, or a folder in one.")] = DEFAULT_ROOT,
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8800,
    host: Annotated[
        str, typer.Option("--host", help="Others may reach it at this address: needs --token.")
    ] = LOCALHOST,
    token: Annotated[str | None, typer.Option("--token", help="What whoever looks has to know.")] = None,
) -> None:
    """Look at labels and images in a browser, also while a run is writing them."""
    from browser.serve import serve

    serve(path, host, port, token)


def main(arguments: list[str] | None = None) -> None:
    """The command, its arguments from the command line; ends with 0, 2 (configuration), 3 (data), 75 (stopped)
    or 1 (anything else).
    """
    from flows.run.process_setup import set_up_process
    from pipeline.errors import MustError

    set_up_process()
    try:
        app(arguments)
    except MustError as error:
        print(f"must: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
