"""Check that the task runner a recipe names (`runtime.runner`) is installed."""

from __future__ import annotations

import importlib.util

from pipeline.errors import ConfigError, install_command
from pipeline.recipe.runtime import RuntimeConfig

FAN_OUT_RUNNERS = {"process": "prefect", "ray": "prefect_ray", "dask": "prefect_dask"}
"""The runners that spread the parts of a step over processes, and the package each needs."""


def check_runner(settings: RuntimeConfig) -> None:
    """Raise ConfigError if the runner is not installed, or if it has no use for the address that is given."""
    module = FAN_OUT_RUNNERS.get(settings.runner, "prefect")
    if settings.runner != "inline" and not importlib.util.find_spec(module):
        needs, others = "prefect: uv pip install prefect", "inline"
        if settings.runner in ("ray", "dask"):
            needs = f"the extra {settings.runner}: {install_command(settings.runner)}"
            others = "threads, process or inline"
        raise ConfigError(f"runtime.runner is {settings.runner!r}, which needs {needs}. Without it: {others}.")
    if settings.address and settings.runner not in ("ray", "dask"):
        raise ConfigError(
            f"runtime.address is {settings.address!r}, but runner {settings.runner!r} works on this machine alone; "
            "ray and dask have addresses."
        )
