"""The commands `must store`: list, query and compare label stores in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import JsonOption, print_json
from pipeline.storage import DEFAULT_ROOT

if TYPE_CHECKING:
    from browser.answers import Answers

# ruff: noqa: PLC0415 - as in cli/main.py

commands = typer.Typer(no_args_is_help=True, help="List, query and compare label stores.")
STATUSES = {"ok": "with a label", "none": "without", "failed": "failed"}
RootOrStoreOption = Annotated[
    str, typer.Option("--root", metavar="ROOT_OR_STORE", help="A root, or a folder inside it.")
]
StoreArgument = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="A name that `must store ls` lists; a teacher's name stands for its newest store."
    ),
]


def _answers(root: str) -> Answers:
    """Load the whole root."""
    from browser.answers import Answers
    from browser.catalogue import root_above
    from browser.loading import Loading
    from pipeline.storage.path import StoragePath

    loading = Loading(root_above(StoragePath.of(root))[0])
    loading.refresh()
    return Answers(loading)


def _named(file: str, problem: str) -> str:
    """Return a problem behind the file that it is about, once."""
    return problem if problem.startswith(file) else f"{file}: {problem}"


@commands.command("ls")
def ls_command(root: RootOrStoreOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """List label stores: teacher, task, number of labels."""
    from cli.artifacts_view import format_time

    about = _answers(root).about()
    if as_json:
        return print_json(about["stores"])
    columns = ["store", "task", "classes", "labels", "none", "failed", "made"]
    rows = [
        [
            store["name"],
            store["task"],
            len(store["classes"]) or "",
            *(store["counts"].get(status, 0) for status in ("ok", "none", "failed")),
            format_time(store["made"]) if store["made"] else "",
        ]
        for store in about["stores"]
    ]
    _print_table(columns, rows)
    for file, problem in about["damaged"].items():
        print(_named(file, problem))
    return None


@commands.command("info")
def info_command(store: StoreArgument, root: RootOrStoreOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """Show what a store's labels mean, the range of each column, and the most frequent classes."""
    from browser.summaries import info

    answers = _answers(root)
    summary = info(answers, answers.store(store))
    if as_json:
        return print_json(summary)
    counts = ", ".join(f"{count:,} {STATUSES[status]}" for status, count in summary["counts"].items())
    print(f"{summary['name']}: {summary['task']}, {sum(summary['counts'].values()):,} images: {counts}")
    if summary["reading"]:
        print(summary["reading"])
    _print_table(["column", "min", "mean", "max"], [[name, *ends] for name, ends in summary["ranges"].items()])
    if summary["most"]:
        _print_table(["class", "images"], summary["most"])
    return None


@commands.command("sql")
def sql_command(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="A SELECT over the table `images` and a table per store.")
    ],
    root: RootOrStoreOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Run an SQL query: SELECT source, confidence FROM images JOIN things USING (id) ORDER BY 2 LIMIT 9."""
    result = _answers(root).sql(query)
    if as_json:
        return print_json([dict(zip(result["columns"], row, strict=True)) for row in result["rows"]])
    _print_table(result["columns"], result["rows"])
    if result["more"]:
        print(f"Only the first {len(result['rows'])} rows are shown.")
    return None


@commands.command("diff")
def diff_command(
    one: StoreArgument,
    other: StoreArgument,
    root: RootOrStoreOption = DEFAULT_ROOT,
    most: Annotated[int, typer.Option("--most", min=1, max=1000, help="Number of images to list.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Compare two stores image by image: two versions of a teacher, two teachers, or a teacher and true labels."""
    from browser.summaries import compare

    answers = _answers(root)
    comparison = compare(answers, answers.store(one), answers.store(other), most)
    if as_json:
        return print_json(comparison)
    images, mean = comparison["images"], comparison["mean"]
    print(f"{images:,} images have labels in both stores; their mean distance is {mean:.3f}, from 0 (equal) to 1.")
    _print_table(
        ["distance", "images"], [[f"{low:.1f} to {low + 0.1:.1f}", count] for low, count in comparison["counts"]]
    )
    _print_table(["distance", "key", "set", "source"], comparison["most"])
    return None


@commands.command("show")
def show_command(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The image's key, 16 hex digits.")],
    root: RootOrStoreOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Show an image and its label in every store."""
    image = _answers(root).image(key, {})
    if as_json:
        return print_json(image)
    print(f"{image['key']}: {image['set']}/{image['split']}, {image['source']}, {image['width']} x {image['height']}")
    for store in image["rejected"] or []:
        print(f"rejected: {f'the labels of {store}' if store else 'the image'}")
    rows = []
    for label in image["labels"]:
        more = ", ".join(f"{name} {_cell(value)}" for name, value in label["columns"].items() if value is not None)
        rows.append([label["store"], label["task"], label["reason"] or label["says"], more])
    _print_table(["store", "task", "label", "columns"], rows)
    return None


@commands.command("verify")
def verify_command(root: RootOrStoreOption = DEFAULT_ROOT) -> None:
    """Read every label file and decode every label; exit code 3 if one is damaged."""
    from browser.summaries import damaged

    answers = _answers(root)
    count = 0
    for file, problem in damaged(answers):
        count += 1
        print(_named(file, problem), flush=True)
    files = sum(len(store.files) for store in answers.loading.catalogue.stores)
    print(f"{files:,} label files, {count or 'no'} damaged.")
    if count:
        raise typer.Exit(3)


def _print_table(columns: list[str], rows: list[list[Any]]) -> None:
    from cli.artifacts_view import print_table

    print_table([columns, *([_cell(value) for value in row] for row in rows)])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)
