"""Settings of the methods of a comparison: as published, or shared."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from tests.flows.measured import steps_of
from tests.flows.plan.test_comparison_steps import CROSSED


@pytest.mark.parametrize("settings", ["published", "shared"])
def test_comparison_steps_train_methods_as_published_or_all_alike(settings: str) -> None:
    text = CROSSED.replace("seeds: 3", f"seeds: 1, settings: {settings}")
    stages = {
        step.config["stage"]["method"]: step.config["stage"]
        for step in steps_of(text).values()
        if "stage" in step.config
    }
    found = {name: (stage["optimizer"], stage["lr"], stage["weight_decay"]) for name, stage in stages.items()}
    simclr = ("lars", pytest.approx(0.075 * 8**0.5), 1e-6) if settings == "published" else ("adamw", 1e-3, 0.05)
    mocov2 = ("sgd", 0.1, 1e-4) if settings == "published" else ("adamw", 0.1, 0.05)
    assert found == {"simclr": simclr, "mocov2": mocov2}, "what a method states itself holds"


def test_comparison_steps_with_shared_settings_refuse_another_optimizer_without_its_rate() -> None:
    text = CROSSED.replace("seeds: 3", "seeds: 1, settings: shared").replace(
        "method: simclr", "method: simclr, optimizer: sgd"
    )
    with pytest.raises(ConfigError, match=r"optimizer is 'sgd', but lr \(0\.001\).*give lr as well"):
        steps_of(text)
