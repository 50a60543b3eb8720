"""Sum up what a root holds, for the page's header: its teachers with their metrics, and its student."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from browser.loading import Loading
from browser.query_process import as_json
from browser.tables import Store
from pipeline.steps.artifact import Artifact
from pipeline.stores.labels import APPLICABILITY, INAPPLICABLE
from pipeline.stores.naming import DIGITS, maker_of, version_of


class Overview:
    """The sum of one root, kept until its tables change.

    Example:
        Overview(loading).to_json()["teachers"][0]["metric"]
    """

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self._lock = threading.Lock()
        self._unlike: tuple[int, list[dict[str, Any]]] = (-1, [])

    def to_json(self) -> dict[str, Any]:
        """Return the teachers, each at the version of its newest labels, the student, and what is `unlike`."""
        stores = self.loading.newest_teachers()
        made = self._newest("teacher")
        names = sorted({*stores, *made})
        student = self._newest("student").get("student")
        return {
            "teachers": [self._teacher(name, stores.get(name), made.get(name)) for name in names],
            "student": student and _student(student),
            "unlike": self.unlike(),
        }

    def _newest(self, kind: str) -> dict[str, Artifact]:
        """Return the newest artifact of a kind by the names of the recipe's sections."""
        artifacts = [read.artifact for read in self.loading.catalogue.manifests.values() if read.artifact.kind == kind]
        return {each.section[-1]: each for each in sorted(artifacts, key=lambda each: each.manifest["began"])}

    def _teacher(self, name: str, store: Store | None, newest: Artifact | None) -> dict[str, Any]:
        version = version_of(store.name) if store else newest.digest[:DIGITS] if newest else ""
        artifacts = (read.artifact for read in self.loading.catalogue.manifests.values())
        made = next((each for each in artifacts if each.kind == "teacher" and each.digest.startswith(version)), None)
        return {
            "name": name,
            "task": store.label.space.task if store else made.manifest["config"]["teacher"]["task"] if made else "",
            "store": store.name if store else None,
            "version": version,
            "made": made.manifest["began"] if made else None,
            **_measured(made.counts if made else {}),
        }

    def unlike(self) -> list[dict[str, Any]]:
        """Return, by teacher and set, how many labels have a known applicability, and how many a low one."""
        version = self.loading.tables.version
        with self._lock:
            if self._unlike[0] != version:
                stores = self.loading.newest_teachers().values()
                self._unlike = version, [row for store in stores for row in self._unlike_by_set(store)]
            return self._unlike[1]

    def _unlike_by_set(self, store: Store) -> list[dict[str, Any]]:
        if not store.has_applicability:
            return []
        column = APPLICABILITY.name
        sql = (
            f'SELECT "set", count({column}), count(*) FILTER ({column} < ?::FLOAT) FROM images '
            f"JOIN {store.table} USING (id) GROUP BY ALL ORDER BY ALL"
        )
        rows = self.loading.tables.query(sql, (INAPPLICABLE,))
        maker = maker_of(store.name)
        return [{"teacher": maker, "set": name, "known": known, "unlike": low} for name, known, low in rows if known]


def _measured(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a teacher's counts say of its leading metric on held-out images; {} if it was not measured."""
    name = counts.get("metric")
    if not isinstance(name, str):
        return {}
    scores, baseline = counts.get("scores", {}), counts.get("baseline", {})
    values = {"score": as_json(scores.get(name)), "baseline": as_json(baseline.get(name))}
    return {"metric": name, **values, "held_out": counts.get("held_out"), "split": counts.get("split")}


def _student(made: Artifact) -> dict[str, Any]:
    """Return what the header says of a student."""
    config = made.manifest["config"].get("student", {})
    return {
        "version": made.digest[:DIGITS],
        "backbone": config.get("backbone"),
        "made": made.manifest["began"],
        "images": made.counts.get("images"),
    }
