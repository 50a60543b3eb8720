"""Lists of what is behind the images that the grid shows: shards and how they are, and files that are no images."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from browser.answers import MOST_ROWS, Answers, finite
from browser.tables import Store
from pipeline.errors import ConfigError

LEFT_OUT = ("quarantine", "duplicates", "notes")


def shards(answers: Answers, store: Store) -> dict[str, Any]:
    """The image shards, each with how many labels of a store it has, those first that something is wrong with: a file
    that can't be read, labels that failed, a low confidence; those that the store was never asked about come last.
    """
    counts = "count(*) FILTER (labels.status = 'ok'), count(*) FILTER (labels.status = 'none'), "
    counts += "count(*) FILTER (labels.status = 'failed'), avg(labels.confidence)"
    sql = (
        f'SELECT shard, "set", split, name, sha256, images, {counts} FROM shards JOIN placed USING (shard) '
        f"LEFT JOIN {store.table} AS labels USING (id) GROUP BY ALL"
    )
    damaged = answers.loading.damaged(store.name)
    rows = []
    for _, dataset, split, name, sha256, images, ok, none, failed, mean in answers.tables.ask(sql).rows:
        rows.append([dataset, split, name, images, ok, none, failed, finite(mean), damaged.get(sha256[:16], "")])
    rows.sort(key=lambda row: (not row[8], not sum(row[4:7]), -row[6], row[7] or 0.0, *row[:3]))
    columns = ["set", "split", "shard", "images", "labels", "without", "failed", "mean confidence", "wrong"]
    return {"columns": columns, "rows": rows[:MOST_ROWS], "total": len(rows)}


def left_out(answers: Answers, kind: str, dataset: str, has: str = "") -> dict[str, Any]:
    """Of a set, the files that are no part of it (`quarantine`), that were met again (`duplicates`), or whose labels
    were changed (`notes`): those with the text `has` in their name or the reason.
    """
    made = answers.loading.found.sets.get(dataset)
    if made is None or kind not in LEFT_OUT:
        raise ConfigError(f"There is no list {kind!r} of a set {dataset!r}: there are {', '.join(LEFT_OUT)}.")
    table = made.load(f"{kind}.parquet", pq.read_table)
    if has:
        words = [table.column(field.name) for field in table.schema if pa.types.is_string(field.type)]
        table = table.filter(_any_has(words, has))
    rows = [list(row.values()) for row in table.slice(0, MOST_ROWS).to_pylist()]
    return {"columns": table.column_names, "rows": rows, "total": len(table)}


def _any_has(columns: list[pa.ChunkedArray], text: str) -> pa.ChunkedArray:
    """In which rows one of the columns has the text, in capitals or not."""
    first, *others = (pc.fill_null(pc.match_substring(column, text, ignore_case=True), False) for column in columns)
    for other in others:
        first = pc.or_(first, other)
    return first
