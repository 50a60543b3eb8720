"""Check before training that datasets have enough labels, as soon as all of them are read."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.errors import error_context
from pipeline.steps.artifact import Inputs, LabelCheck, Step, import_function
from pipeline.steps.config_hash import hash_json


def check_labels(steps: Iterable[Step], inputs: Inputs) -> None:
    """Raise ConfigError, beginning with the place in the recipe, if a step needs labels or images that its sets lack.

    `inputs` hold the artifacts of all early steps. Of steps with the same needs, the first one is checked.
    """
    checked: dict[str, tuple[Step, LabelCheck]] = {}
    for step in steps:
        check = step.kind.label_check
        if check:
            checked.setdefault(hash_json([check.check, check.needs(step.config)]), (step, check))
    for step, check in checked.values():
        with error_context(".".join(step.section)):
            import_function(check.check)(step.config, inputs)
