"""A set that is left with fewer classes than at its last ingest says so."""

from __future__ import annotations

import shutil
from pathlib import Path

from evaluation.report.results import lost_labels
from tests.ingest.photos import Make, add_image


def test_ingest_warns_of_classes_that_are_gone(tmp_path: Path, make: Make) -> None:
    root = tmp_path / "shop"
    for number, name in enumerate(("boots", "hats", "coats")):
        add_image(root / name, f"{number}.png", number)
    first = make(root, "imagefolder", hold_out=0)
    assert "warnings" not in first.counts
    shutil.rmtree(root / "hats")
    made = make(root, "imagefolder", hold_out=0)
    warning = "no longer has the classification classes hats, which it had when it was read last"
    assert made.counts["warnings"] == [warning]
    assert list(lost_labels({"data.shop": made})) == [f"The set {made.section[-1]} {warning}."]
    add_image(root / "boots", "9.png", 9)
    assert "warnings" not in make(root, "imagefolder", hold_out=0).counts, "once"
