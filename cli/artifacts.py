"""The commands `must artifacts`: list the artifacts in a root, check them, and delete those no longer needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import JsonOption, RootOption, print_json
from pipeline.errors import ConfigError
from pipeline.storage import DEFAULT_ROOT

if TYPE_CHECKING:
    from flows.gc.inventory import StoredArtifact
    from pipeline.storage.root import Root

# ruff: noqa: PLC0415 - as in cli/main.py

artifacts = typer.Typer(
    no_args_is_help=True, help="List the artifacts in a root, check them, and delete those no longer needed."
)


def _existing_root(path: str) -> Root:
    from pipeline.storage.root import Root

    root = Root.of(path)
    if not (root.path.exists() or root.local_path().exists()):  # of a remote one, files of earlier work may be here
        raise ConfigError(f"--root: there is no folder {root}.")
    return root


def _read_artifacts(path: str, with_users: bool = True) -> tuple[Root, list[StoredArtifact]]:
    from flows.gc import inventory

    root = _existing_root(path)
    sizes = inventory.list_files(root, "artifacts")
    return root, inventory.list_artifacts(root, inventory.list_runs(root) if with_users else [], sizes)


@artifacts.command("ls")
def artifacts_ls_command(root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """List artifacts: when they were made, how large they are, which runs use them."""
    from cli.artifacts_view import artifact_records, print_artifacts

    _, stored = _read_artifacts(root)
    if as_json:
        print_json(artifact_records(stored), sort_keys=True)
    else:
        print_artifacts(stored)


@artifacts.command("show")
def artifacts_show_command(
    name: Annotated[str, typer.Argument(metavar="STEP[/FINGERPRINT]", help="A name that `must artifacts ls` lists.")],
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Show an artifact: its configuration, inputs, counts and files."""
    from cli.artifacts_view import print_artifact
    from flows.gc.inventory import find_artifact

    opened, stored = _read_artifacts(root)
    artifact = find_artifact(opened, name, stored)
    if as_json:
        print_json(artifact.manifest, sort_keys=True)
    else:
        print_artifact(artifact)


@artifacts.command("verify")
def artifacts_verify_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="STEP[/FINGERPRINT]", help="Default: all artifacts.")
    ] = None,
    root: RootOption = DEFAULT_ROOT,
    repair: Annotated[
        bool, typer.Option("--repair", help="Delete damaged files, so that the next run makes them again.")
    ] = False,
) -> None:
    """Read every byte of artifacts and compare it with their manifests; exit code 3 if a file is damaged or missing."""
    from flows.gc.inventory import find_artifact, find_damage
    from pipeline.steps.workspace import Busy

    opened, stored = _read_artifacts(root, with_users=False)
    if names:
        chosen = [find_artifact(opened, name, stored) for name in names]
    else:
        chosen = [artifact for artifact in stored if artifact.manifest or artifact.damage]
    damaged = 0
    for artifact in chosen:
        try:
            for problem in find_damage(opened, artifact, repair):
                damaged += 1
                print(problem, flush=True)
        except Busy as error:
            print(f"{artifact.name}: not looked at. {error}")
    print(f"{len(chosen)} artifacts, {damaged or 'no'} damaged or missing files.")
    if damaged:
        print(
            "Damaged files are deleted; the next run makes them again."
            if repair
            else "Use --repair to delete damaged files, so that the next run makes them again."
        )
        raise typer.Exit(3)


@artifacts.command("gc")
def artifacts_gc_command(
    root: RootOption = DEFAULT_ROOT,
    keep: Annotated[
        int, typer.Option("--keep", min=1, help="Complete runs of each recipe and comparison whose artifacts are kept.")
    ] = 1,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete what is not kept; without this, it is only listed.")
    ] = False,
) -> None:
    """Show which files are kept and why, and which no recent run uses; with --delete, delete the latter. On a remote
    root, local files that earlier work left on this machine count as well.
    """
    from cli.artifacts_view import print_verdicts
    from flows.gc.deletion import delete_files, run_names
    from flows.gc.inventory import plan_gc
    from flows.gc.scratch import plan_scratch_gc
    from pipeline.steps.workspace import Workspace
    from pipeline.storage.root import Root

    workspace = Workspace(_existing_root(root))
    scratch_root = Root.of(workspace.root.local_path())
    runs, local_runs = run_names(workspace.root), run_names(scratch_root)
    verdicts, scratch = plan_gc(workspace, keep), plan_scratch_gc(workspace.root)
    if delete:
        verdicts = delete_files(workspace.root, verdicts, runs)
        scratch = delete_files(scratch_root, scratch, local_runs)
    print_verdicts([*verdicts, *scratch], delete)
