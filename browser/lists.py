"""Lists beside the grid of images: shards with the state of their labels, and files that were left out of a set."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from browser.answers import MAX_ROWS, Answers
from browser.query_process import as_json
from browser.tables import Store
from pipeline.errors import ConfigError
from pipeline.storage.parquet import read_parquet

LEFT_OUT = ("quarantine", "duplicates", "notes")


def shards(answers: Answers, store: Store) -> dict[str, Any]:
    """Return the image shards with how many labels of a store each has, the worst first.

    Damaged files come first, then failed labels, then a low confidence; shards that the store does not cover are last.
    """
    counts = "count(*) FILTER (labels.status = 'ok'), count(*) FILTER (labels.status = 'none'), "
    counts += "count(*) FILTER (labels.status = 'failed'), avg(labels.confidence)"
    sql = (
        f'SELECT shard, "set", split, name, sha256, images, {counts} FROM shards JOIN image_rows USING (shard) '
        f"LEFT JOIN {store.table} AS labels USING (id) GROUP BY ALL"
    )
    damaged = answers.loading.damaged_files(store.name)
    rows = []
    for _, dataset, split, name, sha256, images, ok, none, failed, mean in answers.tables.query(sql):
        rows.append([dataset, split, name, images, ok, none, failed, as_json(mean), damaged.get(sha256[:16], "")])
    rows.sort(key=lambda row: (not row[8], not sum(row[4:7]), -row[6], row[7] or 0.0, *row[:3]))
    columns = ["set", "split", "shard", "images", "labels", "without", "failed", "mean confidence", "wrong"]
    return {"columns": columns, "rows": rows[:MAX_ROWS], "total": len(rows)}


def left_out(answers: Answers, kind: str, dataset: str, has: str = "") -> dict[str, Any]:
    """Return the files of a set that are unusable (`quarantine`), double (`duplicates`) or whose labels were changed
    (`notes`), of those with the text `has` in their name or the reason.
    """
    artifact = answers.loading.catalogue.sets.get(dataset)
    if artifact is None or kind not in LEFT_OUT:
        raise ConfigError(f"There is no list {kind!r} of a set {dataset!r}: there are {', '.join(LEFT_OUT)}.")
    table = artifact.load(f"{kind}.parquet", read_parquet)
    if has:
        texts = [table.column(field.name) for field in table.schema if pa.types.is_string(field.type)]
        joined = pc.binary_join_element_wise(*texts, "\n", null_handling="skip")
        table = table.filter(pc.match_substring(joined, has, ignore_case=True))
    rows = [list(row.values()) for row in table.slice(0, MAX_ROWS).to_pylist()]
    return {"columns": table.column_names, "rows": rows, "total": len(table)}
