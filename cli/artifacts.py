"""`must artifacts`: look at what a root holds, check it, and clear it out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Root
from pipeline.storage.root import DEFAULT_ROOT

if TYPE_CHECKING:
    from flows.gc.inventory import StoredArtifact
    from pipeline.storage import root as roots

# ruff: noqa: PLC0415 - as in cli/main.py

artifacts = typer.Typer(no_args_is_help=True, help="Look at what a root holds, check it, and clear it out.")
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


def _held(root: str) -> tuple[roots.Root, list[StoredArtifact]]:
    from flows.gc import inventory
    from pipeline.storage import root as roots

    where = roots.Root.of(root)
    return where, inventory.artifacts(where, inventory.runs(where))


@artifacts.command("ls")
def artifacts_ls_command(root: Root = DEFAULT_ROOT, as_json: Json = False) -> None:
    """List artifacts: when they were made, how large they are, which runs refer to them."""
    from cli.artifacts_view import Page, listed

    _, held = _held(root)
    if as_json:
        Page().show_json(listed(held))
    else:
        Page().show_list(held)


@artifacts.command("show")
def artifacts_show_command(
    name: Annotated[str, typer.Argument(metavar="STEP[/FINGERPRINT]", help="As `must artifacts ls` lists them.")],
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Show an artifact: its configuration, inputs, counts and files."""
    from cli.artifacts_view import Page
    from flows.gc.inventory import named

    where, held = _held(root)
    found = named(where, name, held)
    if as_json:
        Page().show_json(found.manifest)
    else:
        Page().show_one(found)


@artifacts.command("verify")
def artifacts_verify_command(
    names: Annotated[list[str] | None, typer.Argument(metavar="[STEP[/FINGERPRINT]]...", help="All, if none.")] = None,
    root: Root = DEFAULT_ROOT,
    repair: Annotated[
        bool, typer.Option("--repair", help="Delete damaged files: the next run makes them anew.")
    ] = False,
) -> None:
    """Read every byte of artifacts and compare with their manifests; ends with 3 if a file is damaged or missing."""
    from flows.gc.inventory import damaged, named

    where, held = _held(root)
    chosen = [named(where, name, held) for name in names] if names else [each for each in held if each.manifest]
    found = 0
    for each, file, wrong in damaged(where, chosen):
        found += 1
        print(f"{'/'.join(each.key)}: {file}: {wrong}", flush=True)
        if repair:
            file.path.remove()
    print(f"{len(chosen)} artifacts, {found or 'no'} damaged or missing files.")
    if found:
        print(
            "Deleted; the next run makes them anew." if repair else "With --repair they are deleted, for the next run."
        )
        raise typer.Exit(3)


@artifacts.command("gc")
def artifacts_gc_command(
    root: Root = DEFAULT_ROOT,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Whole runs of each recipe whose artifacts are kept.")] = 1,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is not kept; without, only say so.")] = False,
) -> None:
    """Show what is kept and why, and what no recent run refers to any more; with --delete, clear that out. Of a root
    elsewhere that is also what work on it left on this machine.
    """
    from cli.artifacts_view import Page
    from flows.gc.inventory import remove, sort_out
    from flows.gc.scratch import scratch
    from pipeline.steps.workspace import Workspace
    from pipeline.storage.root import Root as Where

    workspace = Workspace(Where.of(root))
    verdicts, here = sort_out(workspace, keep), scratch(workspace.root)
    if delete:
        remove(workspace.root, verdicts)
        remove(Where.of(workspace.root.local_path()), here)
    Page().show_verdicts([*verdicts, *here], delete)
