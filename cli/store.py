"""The commands `must store`: what label stores hold, for the terminal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.storage.root import DEFAULT_ROOT

if TYPE_CHECKING:
    from browser.answers import Answers

# Everything that takes time to import is imported by the command that needs it: help comes at once.
# ruff: noqa: PLC0415

commands = typer.Typer(no_args_is_help=True, help="Look at label stores, question and compare them.")
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Path = Annotated[str, typer.Option("--root", metavar="ROOT_OR_STORE", help="A root, or a folder in one.")]
StoreName = Annotated[str, typer.Argument(metavar="STORE", help="As `must store ls` lists them; a teacher's newest.")]


def _answers(root: str) -> Answers:
    """Everything in a root, read."""
    from browser.answers import Answers
    from browser.catalogue import root_above
    from browser.loading import Loading
    from pipeline.storage.path import StoragePath

    loading = Loading(root_above(StoragePath.of(root))[0])
    loading.refresh()
    return Answers(loading)


@commands.command("ls")
def ls_command(root: Path = DEFAULT_ROOT, as_json: Json = False) -> None:
    """List label stores: teacher, task, how many labels."""
    about = _answers(root).about()
    if as_json:
        return _print_json(about["stores"])
    columns = ["store", "task", "classes", "labels", "none", "failed", "made"]
    rows = [
        [
            store["name"],
            store["task"],
            len(store["classes"]) or "",
            *(store["counts"].get(status, 0) for status in ("ok", "none", "failed")),
            _moment(store["made"]),
        ]
        for store in about["stores"]
    ]
    _print_table(columns, rows)
    for file, wrong in about["damaged"].items():
        print(f"{file}: {wrong}")
    return None


@commands.command("info")
def info_command(store: StoreName, root: Path = DEFAULT_ROOT, as_json: Json = False) -> None:
    """Show what a store's labels mean, its columns with their ranges, and its most frequent classes."""
    from browser.summaries import info

    answers = _answers(root)
    found = info(answers, answers.store(store))
    if as_json:
        return _print_json(found)
    print(f"{found['name']}: {found['task']}, {sum(found['counts'].values()):,} images, {found['counts']}")
    if found["reading"]:
        print(found["reading"])
    _print_table(["column", "least", "mean", "most"], [[name, *ends] for name, ends in found["ranges"].items()])
    if found["most"]:
        _print_table(["class", "images"], found["most"])
    return None


@commands.command("sql")
def sql_command(
    query: Annotated[str, typer.Argument(help="A SELECT; the tables are `images` and the stores.")],
    root: Path = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Answer a question in SQL: SELECT source, confidence FROM images JOIN things USING (id) ORDER BY 2 LIMIT 9."""
    from browser.sql import run_sql

    answers = _answers(root)
    found = run_sql(answers.tables, answers.stores, query)
    if as_json:
        return _print_json([dict(zip(found["columns"], row, strict=True)) for row in found["rows"]])
    _print_table(found["columns"], found["rows"])
    if found["more"]:
        print(f"and more; the first {len(found['rows'])} are shown")
    return None


@commands.command("diff")
def diff_command(
    one: StoreName,
    other: StoreName,
    root: Path = DEFAULT_ROOT,
    most: Annotated[int, typer.Option("--most", min=1, max=1000, help="Images to list.")] = 10,
    as_json: Json = False,
) -> None:
    """Compare two stores image by image: two versions of a teacher, two teachers, a teacher and the truth."""
    from browser.summaries import compare

    answers = _answers(root)
    found = compare(answers, answers.store(one), answers.store(other), most)
    if as_json:
        return _print_json(found)
    print(f"{found['images']:,} images that both have labels of; {found['mean']:.3f} apart on average, of 1")
    _print_table(["apart", "images"], [[f"{low:.1f} to {low + 0.1:.1f}", count] for low, count in found["counts"]])
    _print_table(["apart", "key", "set", "source"], found["most"])
    return None


@commands.command("show")
def show_command(
    key: Annotated[str, typer.Argument(metavar="KEY", help="16 hex digits.")],
    root: Path = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Show an image and what every store says of it."""
    found = _answers(root).image(key, {})
    if as_json:
        return _print_json(found)
    print(f"{found['key']}: {found['set']}/{found['split']}, {found['source']}, {found['width']} x {found['height']}")
    for store in found["rejected"] or []:
        print(f"rejected: {f'the labels of {store}' if store else 'the image'}")
    rows = []
    for label in found["labels"]:
        more = ", ".join(f"{name} {_short(value)}" for name, value in label["columns"].items() if value is not None)
        rows.append([label["store"], label["task"], label["reason"] or label["says"], more])
    _print_table(["store", "task", "says", "columns"], rows)
    return None


@commands.command("verify")
def verify_command(root: Path = DEFAULT_ROOT) -> None:
    """Read every label file whole and decode every label; ends with 3 if one is damaged."""
    from browser.summaries import damaged

    answers = _answers(root)
    wrong = 0
    for file, why in damaged(answers):
        wrong += 1
        print(f"{file}: {why}", flush=True)
    files = sum(len(store.files) for store in answers.loading.catalogue.stores)
    print(f"{files:,} label files, {wrong or 'no'} damaged.")
    if wrong:
        raise typer.Exit(3)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _print_table(columns: list[str], rows: list[list[Any]]) -> None:
    from rich.table import Table

    from cli.artifacts_view import Page

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_short(value) for value in row))
    Page().out.print(table, markup=False)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return (
        f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str("" if value is None else value)
    )


def _moment(when: float) -> str:
    from cli.artifacts_view import moment

    return moment(when) if when else ""
