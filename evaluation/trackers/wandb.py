"""Weights & Biases: an offline run, which `wandb sync` uploads. Nothing is sent from here."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.report.run_record import RunRecord
from evaluation.trackers import Scalar, scalars, tags

if TYPE_CHECKING:
    from wandb import Run

PACKAGE = "wandb"
LONGEST_TAG = 64


def write(run: RunRecord, folder: Path) -> None:
    """Write `offline-run-<time>-<name>/` into a folder, which `wandb sync` takes.

    The run's identity is its folder's name, so that what is uploaded twice is one run.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline, it would report on itself nevertheless
    import wandb  # noqa: PLC0415 - an extra

    with tempfile.TemporaryDirectory() as scratch:
        settings = wandb.Settings(
            mode="offline",
            root_dir=scratch,
            reinit="create_new",  # leaves a notebook's own run alone
            silent=True,
            console="off",
            symlink=False,
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        name = run.folder.name
        words = [word[:LONGEST_TAG] for group in tags(run).values() for word in group]
        offline = wandb.init(project=run.name, id=name, name=name, config=run.recipe, tags=words, settings=settings)
        _log(offline, scalars(run))
        offline.finish()
        written = Path(offline.settings.sync_dir)
        shutil.rmtree(written / "logs", ignore_errors=True)
        shutil.move(written, folder / written.name)


def _log(offline: Run, found: Iterable[Scalar]) -> None:
    """Log the curves of each step over that step's own optimizer steps, and final metrics as the summary."""
    for group, of_group in itertools.groupby(found, key=lambda scalar: scalar.group):
        place = group.replace(".", "/")  # in the name of an axis, a dot would part keys
        rows: dict[int, dict[str, float]] = {}
        for scalar in of_group:
            rows.setdefault(scalar.step, {})[f"{place}/{scalar.name}"] = scalar.value
        offline.summary.update(rows.pop(0, {}))
        if rows:
            offline.define_metric(f"{place}/*", step_metric=f"{place}/step")
        for step in sorted(rows):
            offline.log({f"{place}/step": step, **rows[step]})
