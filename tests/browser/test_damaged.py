"""The page and `must store` over label files that are Parquet, but not whole labels of their task."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from browser.answers import Answers
from browser.filters import ImageSelection
from browser.loading import Loading
from browser.summaries import compare, damaged, info
from pipeline.errors import MustError
from pipeline.storage.root import Root
from tests.conftest import World

LARGEST = 2**31 - 1


@pytest.fixture
def root(world: World, maker: str, tmp_path: Path) -> Path:
    """Return a root with true labels and those of one teacher, which have no hashes yet, as while a run writes them."""
    root = tmp_path / "root"
    shutil.copytree(Path(world.workspace.root.path), root, copy_function=shutil.copy)
    for folder in [*root.glob("artifacts/label*"), *root.glob("labels/*")]:
        if not folder.name.startswith(f"{maker}-"):
            shutil.rmtree(folder)
    return root


def without(table: pa.Table, column: str) -> pa.Table:
    return table.drop_columns(column)


def as_text(table: pa.Table, column: str) -> pa.Table:
    return table.set_column(table.schema.get_field_index(column), column, pa.array(["7"] * len(table)))


def with_nulls(table: pa.Table, column: str) -> pa.Table:
    place, field = table.schema.get_field_index(column), table.schema.field(column)
    return table.set_column(place, field.with_nullable(True), pa.nulls(len(table), field.type))


def with_other_entries(table: pa.Table, column: str) -> pa.Table:
    """Return the table with numbers, or lists of them of any length, that no label has."""
    place, field = table.schema.get_field_index(column), table.schema.field(column)
    entries: list[object] = [(LARGEST, -1, 0)[number % 3] for number in range(len(table))]
    if pa.types.is_list(field.type):
        entries = [[entry] * (number % 4) for number, entry in enumerate(entries)]
    if pa.types.is_string(field.type):
        entries = [f"no such {entry}" for entry in entries]
    if pa.types.is_binary(field.type):
        entries = [b"(\xb5/\xfd" + bytes(number % 9) for number in range(len(table))]
    try:
        return table.set_column(place, field, pa.array(entries, field.type))
    except pa.ArrowException:  # boxes
        return with_nulls(table, column)


def ask_all(answers: Answers, maker: str) -> None:
    """Ask all that the page and `must store` ask about a store that could be read in part."""
    store = answers.stores[maker]
    answers.balance(ImageSelection(), store, 0.5)
    answers.histogram(ImageSelection(), f"{store.name}.class")
    for image in answers.tables.query_ids(f"SELECT id FROM {store.table}", ())[:4]:
        answers.pictures.draw(int(image), store, 0.5, 64)
    for image in answers.images(ImageSelection(), 4, 0)["images"]:
        answers.image(image["key"], {})
    info(answers, store)
    compare(answers, store, store, 3)
    answers.sql(f'SELECT * FROM "{maker}"')


@pytest.mark.parametrize("damage", [without, as_text, with_nulls, with_other_entries])
@pytest.mark.parametrize("maker", ["boxes", "masks", "kinds"])
def test_loading_names_damaged_label_file(maker: str, damage: Callable[[pa.Table, str], pa.Table], root: Path) -> None:
    [store] = root.glob(f"labels/{maker}-*")
    file = sorted(store.glob("*.parquet"))[0]
    content, table = file.read_bytes(), pq.read_table(file)
    for column in table.column_names[:: 3 if damage in (without, as_text) else 1]:  # those are found in one way
        try:
            pq.write_table(damage(table, column), file)
            loading = Loading(Root.of(root))
            loading.refresh()
            answers = Answers(loading)
            with contextlib.suppress(MustError):
                ask_all(answers, maker)
            found = dict(damaged(answers))
            if damage in (without, as_text) and table.schema.field(column).type != pa.string():
                assert f"its column '{column}' is " in found[str(file)]
        finally:
            file.write_bytes(content)
