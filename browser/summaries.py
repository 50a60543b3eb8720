"""What there is to say of whole stores: for the terminal, where nobody scrolls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from browser.answers import Answers, finite
from browser.differences import read_rows
from browser.filters import ImageSelection
from browser.pictures import check_hash, decoded
from browser.tables import Store, quoted
from pipeline.errors import MustError
from pipeline.storage.root import StoredFile

FREQUENT = 20
"""Classes that are named."""
TENTHS = 10


def info(answers: Answers, store: Store) -> dict[str, Any]:
    """A store: its task, how many labels, the ranges of its columns, and in how many images its classes are."""
    about = next(each for each in answers.about()["stores"] if each["name"] == store.name)
    numbers = [name for name in about["columns"] if name != "status"]
    ends = ", ".join(f"min({name}), avg({name}), max({name})" for name in map(quoted, numbers))
    found = answers.tables.ask(f"SELECT {ends} FROM {store.table}").rows[0]
    ranges = {name: [finite(end) for end in found[3 * n : 3 * n + 3]] for n, name in enumerate(numbers)}
    frequent: list[list[Any]] = []
    if "classes" in store.columns:
        words = answers.histogram(ImageSelection(), f"{store.name}.class")
        frequent = [list(pair) for pair in zip(words["values"], words["counts"], strict=True)][:FREQUENT]
    named = ("name", "task", "scale", "classes", "threshold", "reading", "counts")
    return {**{name: about[name] for name in named}, "ranges": ranges, "most": frequent}


def compare(answers: Answers, one: Store, other: Store, most: int) -> dict[str, Any]:
    """How far two stores are apart: the mean, how many images by tenths, and the `most` that are furthest."""
    pair = answers.differences.worked_out(one, other)
    sql = f"SELECT count(differ), avg(differ) FROM {pair.table}"
    [[count, mean]] = answers.tables.ask(sql).rows
    tenth = f"least(floor(differ * {TENTHS})::INTEGER, {TENTHS - 1})"
    tenths = dict(answers.tables.ask(f"SELECT {tenth}, count(*) FROM {pair.table} WHERE differ >= 0 GROUP BY 1").rows)
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
        "most": [list(row) for row in answers.tables.ask(far).rows],
    }


def damaged(answers: Answers) -> Iterator[tuple[str, str]]:
    """The label files of which something can't be read or decoded, each with what. Reads every byte."""
    yield from answers.loading.progress.damaged.items()
    for name, store in answers.loading.stores.items():
        for file in answers.loading.files(name):
            why = _wrong(store, file)
            if why:
                yield str(file), why


def _wrong(store: Store, file: StoredFile) -> str | None:
    try:
        check_hash(file)
        for row in read_rows(file):
            if row["status"] == "ok":
                decoded(store, row, 0.0)
    except MustError as error:
        return str(error)
    return None
