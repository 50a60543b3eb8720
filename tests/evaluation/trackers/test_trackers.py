"""Trackers write the curves and numbers of a run from what its steps left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.report.run_record import RunRecord
from evaluation.trackers import (
    TRACKERS,
    Scalar,
    check_tracker_names,
    chosen_trackers,
    scalars,
    tags,
    tensorboard,
    tracker,
)
from pipeline.errors import ConfigError
from pipeline.recipe.plugins import modules

OFFLINE = """
import sys
from pathlib import Path
from evaluation.report.run_record import RunRecord
from evaluation.trackers import tracker
from pipeline.steps.workspace import Workspace
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root

def tell(event, arguments):
    if event == "socket.getaddrinfo":
        print("asks for", arguments[0], file=sys.stderr, flush=True)

sys.addaudithook(tell)
name, folder, root, out = sys.argv[1:]
made = Workspace(Root.of(root)).newest("teacher.t")
tracker(name).write(RunRecord(StoragePath.of(folder), {"teacher.t": made}), Path(out))
"""
"""Writes a run, and tells the hosts that this process asks for."""


def test_scalars_are_losses_rates_validations_and_final_metrics(run: RunRecord) -> None:
    assert list(scalars(run)) == [
        Scalar("teacher.t", "loss", 1, 2.0),
        Scalar("teacher.t", "loss", 2, 1.0),
        Scalar("teacher.t", "loss/a", 1, 1.5),
        Scalar("teacher.t", "loss/a", 2, 1.0),
        Scalar("teacher.t", "loss/b", 1, 0.5),
        Scalar("teacher.t", "lr", 1, 0.1),
        Scalar("teacher.t", "lr", 2, 0.05),
        Scalar("teacher.t", "validation/miou", 2, 0.25),
        Scalar("evaluate/student", "depth/rooms/rmse", 0, 0.5),
    ]


def test_tags_are_backbone_and_tasks_of_the_recipe(run: RunRecord) -> None:
    assert tags(run) == {"backbone": ["resnet18"], "task": ["depth", "segmentation"]}
    assert tags(RunRecord(run.folder / "without", {})) == {"backbone": [], "task": []}


def test_tensorboard_writes_event_files_that_it_reads_again(run: RunRecord, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # noqa: PLC0415

    tensorboard.write(run, tmp_path / "out")
    found: dict[tuple[str, str, int], float] = {}
    for path in (tmp_path / "out").rglob("events.out.tfevents.*"):
        group = path.parent.relative_to(tmp_path / "out").as_posix()
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:  # the loader makes tensors of numbers
                found[group, value.tag, event.step] = value.tensor.float_val[0]
    assert found == pytest.approx({scalar[:3]: scalar.value for scalar in scalars(run)})


def test_chosen_trackers_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker("tensorboard"), "PACKAGE", "json")
    assert chosen_trackers(None) == chosen_trackers(["tensorboard"]) == ["tensorboard"]
    assert chosen_trackers([]) == []
    monkeypatch.setattr(tracker("tensorboard"), "PACKAGE", "not_there_at_all")
    assert chosen_trackers(None) == []
    with pytest.raises(ConfigError, match=r"names 'tensorboard', which needs the extra tensorboard: .*\[\] would do"):
        chosen_trackers(["tensorboard"])


def test_check_tracker_names_tells_typos() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.trackers: 'tensorbord' is unknown\. Did you mean 'tensorboard'"):
        check_tracker_names(["tensorbord"])


@pytest.mark.parametrize("name", modules(TRACKERS))
def test_tracker_asks_no_network_prints_nothing_and_ends(run: RunRecord, tmp_path: Path, name: str) -> None:
    pytest.importorskip(tracker(name).PACKAGE)
    out = tmp_path / "out"
    out.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        environ = {**os.environ, "HTTP_PROXY": url, "HTTPS_PROXY": url, "HOME": str(tmp_path / "home")}
        places = map(str, (run.folder, run.artifacts["teacher.t"].root, out))
        command = [sys.executable, "-c", OFFLINE, name, *places]
        done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody called
            proxy.accept()
    assert [path for path in out.rglob("*") if path.is_file()]
    assert not (tmp_path / "mlruns").exists()
