"""Summarize, compare and check whole stores, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from browser.answers import Answers
from browser.filters import ImageSelection
from browser.label_files import decode_row, read_rows
from browser.query_process import as_json
from browser.tables import Store, quoted
from pipeline.errors import MustError
from pipeline.storage.root import StoredFile

MAX_CLASSES = 20
"""Classes that are listed."""
TENTHS = 10


def info(answers: Answers, store: Store) -> dict[str, Any]:
    """Return a store's task, number of labels, ranges of columns, and the number of images with each class."""
    about = next(entry for entry in answers.about()["stores"] if entry["name"] == store.name)
    numbers = [name for name in about["columns"] if name != "status"]
    ends = ", ".join(f"min({name}), avg({name}), max({name})" for name in map(quoted, numbers))
    found = answers.tables.query(f"SELECT {ends} FROM {store.table}")[0]
    ranges = {name: [as_json(end) for end in found[3 * n : 3 * n + 3]] for n, name in enumerate(numbers)}
    frequent: list[list[Any]] = []
    if "classes" in store.columns:
        words = answers.histogram(ImageSelection(), f"{store.name}.class")
        frequent = [list(pair) for pair in zip(words["values"], words["counts"], strict=True)][:MAX_CLASSES]
    shown = ("name", "task", "scale", "classes", "threshold", "reading", "counts")
    return {**{name: about[name] for name in shown}, "ranges": ranges, "most": frequent}


def compare(answers: Answers, one: Store, other: Store, most: int) -> dict[str, Any]:
    """Return how far two stores are apart: the mean, the number of images by tenths, and the `most` distant ones."""
    pair = answers.differences.compute(one, other)
    sql = f"SELECT count(differ), avg(differ) FROM {pair.table}"
    [[count, mean]] = answers.tables.query(sql)
    tenth = f"least(floor(differ * {TENTHS})::INTEGER, {TENTHS - 1})"
    tenths = dict(answers.tables.query(f"SELECT {tenth}, count(*) FROM {pair.table} WHERE differ >= 0 GROUP BY 1"))
    far = (
        f'SELECT differ, key, "set", source FROM images JOIN {pair.table} USING (id) WHERE differ >= 0 '
        f"ORDER BY differ DESC, id LIMIT {int(most)}"
    )
    return {
        "one": one.name,
        "other": other.name,
        "images": count,
        "mean": mean or 0.0,
        "counts": [[number / TENTHS, tenths.get(number, 0)] for number in range(TENTHS)],
        "most": [list(row) for row in answers.tables.query(far)],
    }


def damaged(answers: Answers) -> Iterator[tuple[str, str]]:
    """Yield (file, what is wrong) for label files that can't be read or decoded. Reads every byte."""
    found = dict(answers.loading.progress.damaged)
    yield from found.items()
    for name, store in answers.loading.stores.items():
        for file in answers.loading.label_files(name):
            if str(file) in found:
                continue
            error = _error(store, file)
            if error:
                yield str(file), error


def _error(store: Store, file: StoredFile) -> str | None:
    try:
        file.check()
        for row in read_rows(file):
            if row["status"] == "ok":
                decode_row(store, row, 0.0)
    except MustError as error:
        return str(error)
    return None
