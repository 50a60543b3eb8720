"""Measure how many bytes a label takes on disk, by teacher: of all labels that the newest run of a root has made.

must label benchmarks/label_sizes.yaml --root ROOT
python -m benchmarks.label_sizes --root ROOT
"""

from __future__ import annotations

import typer

from benchmarks.measure import RESULTS, describe_environment, save_result
from cli.options import RootOption
from pipeline.errors import DataError
from pipeline.steps.artifact import read_json
from pipeline.steps.workspace import Workspace
from pipeline.storage import DEFAULT_ROOT
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelSpace, open_labels, read_metadata
from pipeline.stores.naming import LABEL_STEP
from pipeline.training.device import find_device

TITLE = "Bytes of a label in a label store, by teacher"


def main(root: RootOption = DEFAULT_ROOT) -> None:
    """Measure the labels in a root."""
    made = Workspace(Root.of(root)).newest(LABEL_STEP)
    if made is None:
        raise DataError(f"{root}: holds no labels; `must label` with a recipe makes some.")
    by_teacher: dict[str, dict[str, int]] = {}
    spaces: dict[str, LabelSpace] = {}
    for entry in made.load("labels.json", read_json):
        name, file = entry["teacher"], made.external_file(entry["path"])
        counted = by_teacher.setdefault(name, {"images": 0, "bytes": 0})
        counted["images"] += entry["rows"]
        counted["bytes"] += entry["size"]
        if name not in spaces:
            schema = open_labels(file, lambda parquet: parquet.schema_arrow)
            spaces[name] = LabelSpace.from_json(read_metadata(schema, file)["space"])
    table = [["teacher", "task", "classes", "images", "bytes per image"]]
    for name, counted in by_teacher.items():
        space = spaces[name]
        each = counted["bytes"] / counted["images"]
        table.append([name, space.task, str(len(space.classes)), f"{counted['images']:,}", f"{each:,.0f}"])
    result = {"measured": describe_environment(find_device("auto")), "teachers": by_teacher}
    save_result(RESULTS / "label_sizes.json", TITLE, result, table)


if __name__ == "__main__":
    typer.run(main)
