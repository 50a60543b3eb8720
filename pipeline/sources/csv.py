"""CSV files with a row per image: its path, and one class, several classes in a cell, or a column for each class.

The first row names the columns. An image's path is relative to the folder that `path` is, or that it is in, or to
`images`. The split comes from a column `split`, or else from a CSV file that is called like it (`train.csv`), from the
folders in an image's path, or from a word in the CSV file's path (`train_labels.csv`). Without any, a share is held
out.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pipeline.errors import ConfigError, DataError
from pipeline.sources import SourceRecord
from pipeline.sources._classes import check_distinct
from pipeline.sources._detection import is_readable
from pipeline.sources._files import FileSource
from pipeline.sources._named_files import NamedFiles
from pipeline.sources._splits import Split, parse_split, split_by_hash, split_from_path
from pipeline.sources._tables import LabelColumns, TableConfig, classes_among, distinct_names
from pipeline.storage.path import StoragePath, require_exists, walk
from pipeline.stores.labels import LabelSpace


class Config(TableConfig):
    """A CSV file, or a folder of them."""

    kind: Literal["csv"] = "csv"
    image: str = "image"
    """Column of the images' paths."""
    images: str | None = None
    """Folder that the images' paths are relative to; itself relative to the folder that `path` is, or that it is in,
    which is the default."""
    elsewhere: tuple[str, ...] = ()
    """Other folders that the images' paths may lead to, relative as `images` is. Of images that lie neither there nor
    in the set's own folder, links resolved, none is read."""


class _Row(NamedTuple):
    """A row of a CSV file: the cells by column."""

    file: StoragePath
    line: int
    cells: dict[str, str]

    @property
    def place(self) -> str:
        return f"{self.file} line {self.line}"


class Source(FileSource):
    """Reads the files. Raises ConfigError if the path or a column does not exist; DataError on files of other kinds."""

    def __init__(self, config: Config) -> None:
        self.config = config
        path = require_exists(StoragePath.of(config.path), "path", "path")
        root = path if path.is_folder() else path.parent
        files = [file for file in walk(path) if file.suffix == ".csv"] if path.is_folder() else [path]
        if not files:
            raise ConfigError(f"path: no .csv files in {path}")
        folder = require_exists(root / config.images, "images", "folder") if config.images else root
        others = [require_exists(root / name, "elsewhere", "folder") for name in config.elsewhere]
        self._named = NamedFiles(folder, others, root)
        super().__init__(root, self._named.folders, files)

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        return {} if is_readable(lambda: cls(Config(path=path))) else None

    @functools.cached_property
    def _labelled(self) -> list[StoragePath]:
        """The files with labels; those of a test split may lack the column unless the recipe names it."""
        labelled = []
        for file in self.files:
            header = next(_lines(file), (0, []))[1]
            if len(set(header)) < len(header):
                raise DataError(f"{file}: two columns have the same name: {', '.join(header)}")
            for column in self.config.required_columns:
                if column not in header:
                    raise ConfigError(f"{file}: there is no column {column!r}; there are {', '.join(header)}")
            if set(self.config.label_columns) <= set(header):
                labelled.append(file)
        return labelled

    @functools.cached_property
    def _labels(self) -> LabelColumns:
        config = self.config
        classes = config.labels or config.classes
        if not classes:
            rows = (row for file in self._labelled for row in _rows(file))
            names = distinct_names((row.cells[config.label_columns[0]] for row in rows), config)
            classes = classes_among(names, config)
        check_distinct(classes)
        from_labels = not (config.labels or config.classes)
        return LabelColumns(config, classes, bool(config.labels or config.separator), from_labels)

    def spaces(self) -> dict[str, LabelSpace]:
        if not self._labelled:
            return {}
        space = self._labels.space
        return {space.task: space}

    def read_records(self) -> Iterator[SourceRecord]:
        folder = self._named.folder
        remote = self.list_remote()
        lines: dict[str, str] = {}
        for row in (row for file in self.files for row in _rows(file)):
            stated = row.cells[self.config.image]
            try:
                file = self._named.find(stated)
            except DataError as error:
                self.problems.append((f"{row.file.name} line {row.line}", str(error)))
                continue
            path = file.relative_to(folder)
            name = file.relative_to(self.root)
            if name in lines:
                self.problems.append((name, f"listed twice, by {lines[name]} and {row.place}"))
                continue
            lines[name] = row.place
            yield self._record(name, self._row_split(path, row), remote.get(file, file), row)
        if not lines and not self.problems:
            raise DataError(f"{', '.join(map(str, self.files))}: lists no image in {folder}")

    def _record(self, name: str, split: Split, file: StoragePath, row: _Row) -> SourceRecord:
        read = functools.partial(self._named.read, file)
        if not self._labelled:
            return SourceRecord(name, split, read, stamp=file.stamp)
        truth = functools.partial(self._labels.truth, row.cells, row.place)
        return SourceRecord(name, split, read, truth, file.stamp)

    def _row_split(self, path: str, row: _Row) -> Split:
        if "split" in row.cells:
            stated = row.cells["split"]
            if split := parse_split(stated):
                return split
            raise DataError(f"{row.place}: split {stated!r} is none of train, val, test")
        exact = (row.file.name.rpartition(".")[0], *reversed(path.split("/")[:-1]))
        found: Split | None = next(filter(None, map(parse_split, exact)), None)
        return found or split_from_path(row.file.relative_to(self.root)) or split_by_hash(path, self.config.hold_out)

    def count(self) -> None:
        """Return None: to count the rows is to read the files."""


def _lines(file: StoragePath) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, stripped cells) of the rows of a CSV file that are not empty, the header first."""
    try:
        reader = csv.reader(io.StringIO(file.read().decode("utf-8-sig"), newline=""), strict=True)
        for cells in reader:
            if cells:
                yield reader.line_num, [cell.strip() for cell in cells]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file}: can't be read as CSV in UTF-8 ({error})") from error


def _rows(file: StoragePath) -> Iterator[_Row]:
    """Yield the rows after the header. Raises DataError if one has more or fewer cells than the header."""
    lines = _lines(file)
    _, header = next(lines, (0, []))
    for line, cells in lines:
        if len(cells) != len(header):
            raise DataError(f"{file} line {line}: {len(cells)} cells, where the first line names {len(header)} columns")
        yield _Row(file, line, dict(zip(header, cells, strict=True)))
