"""The notebook runs from its first cell to its last, in a kernel as Jupyter starts it."""

from __future__ import annotations

import json
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

from tests.docs.pages import DOCS

NOTEBOOK = DOCS / "notebooks" / "from_folder_to_prediction.py"
PICTURES = 4
"""Images, labels, predictions and neighbors."""


def test_notebook_runs_from_folder_to_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    notebook = jupytext.read(NOTEBOOK)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES
    (file,) = tmp_path.glob("must-*/must-root/runs/*/metrics.json")
    metrics = json.loads(file.read_text("utf-8"))
    for head, metric in (("surfaces_classification", "accuracy"), ("coins_segmentation", "miou")):
        found = {each["model"]: each["value"] for each in metrics if (each["head"], each["metric"]) == (head, metric)}
        assert min(found["student"], found[f"teacher:{head}"]) > found["baseline"] + 0.15, found
