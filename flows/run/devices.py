"""Share out the GPUs of this machine: each step has as many as it can use, of its own if there are enough."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from evaluation.report.formatting import plural
from pipeline.errors import ConfigError
from pipeline.recipe.runtime import RuntimeConfig
from pipeline.steps.artifact import Artifact, Step
from pipeline.steps.config_hash import flat

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
Environ = Mapping[str, str]
"""Environment variables to add for a process."""
Artifacts = Mapping[str, Artifact]
"""By step, those of a step's inputs."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """The GPUs of a run, by name, and the recipe's wishes how steps share them."""

    gpus: list[str]
    """None on a machine without: steps share its cores."""
    settings: RuntimeConfig

    @property
    def training_processes(self) -> int:
        """The number of processes that train a network together, if its steps have an image for each."""
        wanted = self.settings.training_processes
        return max(1, len(self.gpus)) if wanted == "auto" else wanted

    @property
    def concurrency(self) -> int:
        """The number of steps that may run at once."""
        return self.settings.side_by_side or len(self.gpus) or 1

    @property
    def steps_per_gpu(self) -> int:
        """The number of steps that share a GPU, if there are fewer than the recipe wants steps at once."""
        size = 1 if self.settings.training_processes == "auto" else self.training_processes
        return max(1, math.ceil(self.settings.side_by_side / max(1, len(self.gpus) // size)))

    def check(self) -> None:
        """Raise ConfigError if the recipe wants more processes for a network than there are GPUs."""
        if 0 < len(self.gpus) < self.training_processes:
            raise ConfigError(
                f"runtime.training_processes is {self.training_processes}: at most {len(self.gpus)}, the number of "
                "CUDA devices, or auto for all of them."
            )

    def processes(self, step: Step, artifacts: Artifacts) -> int:
        """Return the number of processes that a step runs in, on a GPU each."""
        most = self._most_processes(step)
        fewest = step.kind.fewest_images
        return most if most == 1 or fewest is None else min(most, fewest(step.config, artifacts))

    def _most_processes(self, step: Step) -> int:
        """Return the number of processes of a step as far as its configuration tells: its data may allow fewer."""
        return min(self.training_processes, flat(step.config)[step.kind.trains]) if step.kind.trains else 1

    def processes_at_once(self, step: Step, artifacts: Artifacts, others: list[Step]) -> int:
        """Return the most processes that are at work at once while a step is, if these others may run beside it."""
        own = self.processes(step, artifacts)
        beside = sum(sorted(map(self._most_processes, others), reverse=True)[: self.concurrency - 1])
        return own + (min(beside, len(self.gpus) * self.steps_per_gpu - own) if self.gpus else beside)

    def describe(self, step: Step, artifacts: Artifacts) -> str:
        """Return what a step runs on, and why on no more, as `on 2 of 8 GPUs, as its smallest step has 2 images`.

        "" for a single process on a machine without GPUs or with one.
        """
        used, most = self.processes(step, artifacts), len(self.gpus) or self.training_processes
        if most == 1 or not (self.gpus or step.kind.trains):
            return ""
        place = f"on {used} of {plural(most, 'GPU')}" if self.gpus else f"in {plural(used, 'process', 'processes')}"
        if not step.kind.trains:
            return f"{place}, as it can use one"
        if used < self.training_processes:
            return f"{place}, as its smallest step has {plural(used, 'image')}"
        return place


class DevicePool:
    """GPUs that are lent to steps. Not for several threads."""

    def __init__(self, devices: Devices) -> None:
        self._devices = devices
        self._free = dict.fromkeys(devices.gpus, devices.steps_per_gpu)
        """For each GPU, the number of steps that it can still be lent to."""
        self._lent = dict[str, list[str]]()

    def lend(self, step: Step, artifacts: Artifacts) -> bool:
        """Lend a step the GPUs that it can use, those with the fewest other steps first; False if too few are free."""
        if not self._free:
            return True
        count = self._devices.processes(step, artifacts)
        idlest = sorted((gpu for gpu, free in self._free.items() if free), key=lambda gpu: -self._free[gpu])
        if len(idlest) < count:
            return False
        self._lent[step.name] = [gpu for gpu in self._free if gpu in idlest[:count]]
        for gpu in self._lent[step.name]:
            self._free[gpu] -= 1
        return True

    def give_back(self, name: str) -> None:
        """Take back the GPUs of a step, if it has any."""
        for gpu in self._lent.pop(name, ()):
            self._free[gpu] += 1

    def environ(self, name: str) -> Environ:
        """Return the variables by which the processes of a step see the GPUs that it was lent."""
        return {VISIBLE_GPUS: ",".join(self._lent[name])} if name in self._lent else {}
