"""The `must` command and its subcommands."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.artifacts import artifacts
from cli.export import commands as export_commands
from cli.options import JsonOption, OverrideOptions, RecipeArgument, RootOption, print_json
from cli.predict import commands as predict_commands
from cli.store import commands as store_commands
from must import plan, run
from pipeline.errors import ConfigError, MustError, Shortage, require_one_of
from pipeline.steps import ranks
from pipeline.storage import DEFAULT_ROOT

if TYPE_CHECKING:
    from flows.plan.selection import Selection

# Slow imports are in the commands that need them, so that help is shown at once.
# ruff: noqa: PLC0415

app = typer.Typer(
    name="must",
    help="Multi-task self-training: specialised teachers label a pool of images, one student learns from all of them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(predict_commands)  # without a name: they are commands of their own
app.add_typer(export_commands, name="export")
app.add_typer(store_commands, name="store")
app.add_typer(artifacts, name="artifacts")
ToOption = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="STEP",
        help="Stop after this step, or after all of a section (evaluate, teachers, compare.small) or kind (stage).",
        show_default="all steps",
    ),
]
OnlyOption = Annotated[
    str | None, typer.Option("--only", metavar="STEP", help="Run this step alone; its inputs must exist already.")
]
FromOption = Annotated[
    str | None,
    typer.Option("--from", metavar="STEP", help="Run this step and all steps that depend on it again, changed or not."),
]
ForceOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--force", metavar="STEP", help="Run this step again, and steps that depend on it if its result differs."
    ),
]
LOCALHOST = "127.0.0.1"


def _selection(to: str | None, only: str | None, start: str | None, force: list[str] | None) -> Selection:
    from flows.plan.selection import Selection

    if only and to:
        raise ConfigError(f"--only {only} and --to {to} can't be combined; leave out one of them.")
    return Selection(to, only, start, tuple(force or ()))


def _run_and_print(recipe: Path, root: str, override: list[str] | None, steps: Selection) -> None:
    """Run a recipe, and print its events as JSON for programs, and nothing else."""
    from cli.events import EventStream
    from pipeline.recipe.reader import read_recipe

    with EventStream.on_standard_output() as events:
        parsed = read_recipe(recipe, override or ())
        outcome = run(parsed, root, None, steps, progress=events.progress, on_event=events.record)
        if ranks.is_first():
            events.finish(outcome)


def _run_and_show(recipe: Path, root: str, override: list[str] | None, steps: Selection) -> None:
    from pipeline.recipe.reader import read_recipe

    parsed = read_recipe(recipe, override or ())
    from cli.console import Console  # after the recipe: a mistake in it is told without

    console, stop = Console(), threading.Event()
    with console.progress(stop) as progress:
        outcome = run(parsed, root, None, steps, progress=progress, stop=stop)
    if ranks.is_first():  # of the processes that torchrun started
        console.show_outcome(outcome)


@app.command("run")
def run_command(
    recipe: RecipeArgument,
    root: RootOption = DEFAULT_ROOT,
    override: OverrideOptions = None,
    to: ToOption = None,
    only: OnlyOption = None,
    start: FromOption = None,
    force: ForceOptions = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the run's events as JSON, one a line, for programs.")
    ] = False,
) -> None:
    """Run a recipe: every step that has no result yet."""
    run_steps = _run_and_print if as_json else _run_and_show
    run_steps(recipe, root, override, _selection(to, only, start, force))


@app.command("label")
def label_command(recipe: RecipeArgument, root: RootOption = DEFAULT_ROOT, override: OverrideOptions = None) -> None:
    """Run a recipe up to the teachers' labels of the pool."""
    from flows.plan.selection import Selection

    _run_and_show(recipe, root, override, Selection("label"))


@app.command("compare")
def compare_command(
    recipe: RecipeArgument,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A name under the recipe's `compare`.", show_default="all")
    ] = None,
    root: RootOption = DEFAULT_ROOT,
    override: OverrideOptions = None,
    plan_only: Annotated[bool, typer.Option("--plan", help="Show what would run, and run nothing.")] = False,
) -> None:
    """Run the recipe's comparisons of self-supervised methods, and advise which methods are worth their cost."""
    from cli.console import Console
    from flows.plan.selection import Selection
    from pipeline.recipe.comparison import COMPARE
    from pipeline.recipe.reader import read_recipe

    comparisons = read_recipe(recipe, override or ()).compare
    if not comparisons:
        raise ConfigError(
            f"{recipe}: has no section `compare`. Add one, for example compare: {{first: {{data: [...], methods: "
            "{simclr: {method: simclr}, dino: {method: dino}}}}."
        )
    selection = Selection(f"{COMPARE}.{require_one_of(name, comparisons, 'Comparison')}" if name else COMPARE)
    if plan_only:
        planned = plan(recipe, root, override, selection)
        Console().show_plan(planned)
    else:
        _run_and_show(recipe, root, override, selection)


@app.command("plan")
def plan_command(
    recipe: RecipeArgument,
    root: RootOption = DEFAULT_ROOT,
    override: OverrideOptions = None,
    to: ToOption = None,
    only: OnlyOption = None,
    start: FromOption = None,
    force: ForceOptions = None,
) -> None:
    """Show which steps a run would run or reuse, and why."""
    planned = plan(recipe, root, override, _selection(to, only, start, force))
    from cli.console import Console  # after the plan: a mistake in the recipe is told without it

    Console().show_plan(planned)


@app.command("init")
def init_command(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Folders of images, with or without labels.")],
    to: Annotated[Path, typer.Option("--to", help="The recipe file to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe for folders of images, from what they contain."""
    from ingest.init import write_recipe

    for line in write_recipe(folders, to):
        print(line)
    print(f"Wrote {to}. Next: must plan {to}")


@app.command("doctor")
def doctor_command(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="Check its data and models as well.")] = None,
    root: RootOption = DEFAULT_ROOT,
    trial: Annotated[bool, typer.Option(help="Train models for ten seconds, to tell how long a run takes.")] = True,
) -> None:
    """Check the environment, the root and a recipe's data and models; exit code 2 if something is wrong.

    Samples of every set are opened: what they hold, and what is odd about it, marked with ?.
    """
    from cli.doctor import MARKS, examine

    all_fine = True
    for fine, subject, finding in examine(root, recipe, trial):
        all_fine &= fine is not False
        print(f"{MARKS[fine]} {subject:<34} {finding}", flush=True)
    if not all_fine:
        raise typer.Exit(2)


@app.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from cli.schema import schema

    print(schema())


@app.command("up")
def up_command(
    at_once: Annotated[
        int | None,
        typer.Option("--at-once", min=1, help="Number of runs at the same time; others wait.", show_default="1"),
    ] = None,
) -> None:
    """Start a Prefect server and a worker in the background, and register this project's deployments."""
    from cli.console import Console
    from flows.server.commands import up

    Console().show_up(up(at_once, print))


@app.command("down")
def down_command(
    now: Annotated[bool, typer.Option("--now", help="Stop active runs; their state is saved.")] = False,
) -> None:
    """End the server and the worker that `must up` started."""
    from flows.server.commands import down

    ended = down(now, print)
    print(f"Ended: {', '.join(ended)}." if ended else "Nothing was up.")


@app.command("status")
def status_command(as_json: JsonOption = False) -> None:
    """Show what `must up` started, and which runs are active."""
    from cli.console import Console
    from flows.server.commands import status

    current = status()
    if as_json:
        print_json(current)
    else:
        Console().show_status(current)


@app.command("browse")
def browse_command(
    path: Annotated[str, typer.Argument(metavar="ROOT_OR_STORE", help="A root, or a folder inside it.")] = DEFAULT_ROOT,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 8800,
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen on; other machines, if it lets them in, need a token."),
    ] = LOCALHOST,
    token: Annotated[
        str | None,
        typer.Option(
            "--token", envvar="MUST_TOKEN", help="Secret for visitors from other machines; by default a new one."
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the token, which lists of processes then don't show.")
    ] = None,
) -> None:
    """Show images and labels in a web browser, also while a run writes them."""
    from browser.guard import check_token, read_token
    from browser.serve import serve

    if token_file is not None:
        token = read_token(token_file)
    elif token is not None:
        check_token(token, "--token")
    serve(path, host, port, token)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit with 0, 2 (configuration), 3 (data), 4 (shortage), 75 (stopped) or 1 (anything else)."""
    from cli.output import Output
    from flows.run.process_setup import set_up_process
    from pipeline.storage.shortage import WAYS_OUT, shortage_of

    _check_current_folder()
    set_up_process()
    _allow_any_text()
    try:
        with contextlib.redirect_stdout(Output(sys.stdout)) if sys.stdout else contextlib.nullcontext():
            app(arguments)
    except MustError as error:
        print(f"must: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        resource = shortage_of(error)
        way_out = f" {WAYS_OUT[resource]}" if resource else ""
        print(f"must: {error.filename or 'the system'}: {error.strerror or error}.{way_out}", file=sys.stderr)
        sys.exit(Shortage.exit_code if resource else 1)


def _check_current_folder() -> None:
    """End the command if the current folder is gone: libraries fail in odd ways then."""
    try:
        os.getcwd()
    except FileNotFoundError:
        print("must: the current folder has been deleted: change to another one.", file=sys.stderr)
        sys.exit(ConfigError.exit_code)


def _allow_any_text() -> None:
    """Let the terminal show a question mark for signs that its encoding lacks: no run may end for an arrow."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
