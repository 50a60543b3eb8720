"""Plans: which steps may run beside each other."""

from __future__ import annotations

from flows.plan.plan import Planned, independent_steps
from pipeline.steps.artifact import Artifact
from pipeline.storage.root import Root
from tests.steps import make_step


def test_independent_steps_are_to_be_made_and_neither_upstream_nor_downstream() -> None:
    inputs = {
        "data.a": (),
        "data.b": (),
        "data.made": (),
        "teacher.a": ("data.a",),
        "teacher.b": ("data.b",),
        "label": ("teacher.a", "teacher.b", "data.made"),
        "student": ("label",),
        "student.labels": ("student",),
        "evaluate": ("student",),
    }
    made = Artifact(Root.of("root"), "data.made", {})
    planned = [
        Planned(make_step(name, "work", {}, each), made if name == "data.made" else None, "")
        for name, each in inputs.items()
    ]
    steps = {each.step.name: each.step for each in planned}
    assert independent_steps(planned, steps["teacher.a"]) == [steps["data.b"], steps["teacher.b"]]
    assert independent_steps(planned, steps["data.a"]) == [steps["data.b"], steps["teacher.b"]]
    assert independent_steps(planned, steps["student"]) == []
    assert independent_steps(planned, steps["evaluate"]) == [steps["student.labels"]]
