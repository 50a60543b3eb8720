"""The recipe's `runtime` section: the machine. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipeline.recipe.base import BaseConfig, UniqueItems
from pipeline.storage.root import CACHE_GB

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "32", "bf16", "fp16"]


def _processes(value: Any) -> Any:
    if value != "auto" and not (str(value).isdecimal() and int(value)):  # a variable gives text
        raise ValueError(f"{value!r} is no number of processes: a whole number from 1 on, or auto would work")
    return value


class RuntimeConfig(BaseConfig):
    """The use of the machine. No key is part of a fingerprint."""

    device: Device = "auto"
    """`auto` uses a GPU if there is one."""
    precision: Annotated[Precision, BeforeValidator(lambda value: str(value) if value == 32 else value)] = "auto"
    """`auto` measures whether bfloat16 is faster, separately for every model, and for training and prediction; on GPUs
    without bfloat16 (before Ampere) float16, with scaled losses."""
    deterministic: bool = False
    """Measures nothing: `auto` precision is 32, and memory is laid out in one way, so that two runs on equal machines
    give the same numbers to the last digit. On a GPU it also takes torch's deterministic algorithms. Slower."""
    gradient_checkpointing: bool = False
    """Trainings keep only the inputs of a backbone's blocks for the backward pass, and compute the blocks again there:
    less memory for the time of one more forward pass. The result is the same."""
    runner: Literal["inline", "threads", "process", "ray", "dask"] = "threads"
    """`threads` runs the steps as a Prefect flow, each in its own process. `process`, `ray` and `dask` do so too, and
    label in many processes at once. `inline` runs the steps one after the other in this process, without Prefect."""
    address: str | None = None
    """Address of a Ray or Dask cluster, as in ray://head:10001 or tcp://scheduler:8786; null for this machine."""
    label_workers: int = Field(default=0, ge=0)
    """Processes of this machine that label at once with `process`, `ray` and `dask`; 0 = one per GPU, or per core."""
    training_processes: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], BeforeValidator(_processes)] = 1
    """Processes that train one network together, each on its own GPU; on a CPU they share the cores. `auto` is one for
    each GPU, and one without. A network whose smallest step has fewer images, or a stage whose smallest step has fewer
    unlabelled ones, gets one for each image. With `inline`, torchrun starts them, and this has no effect."""
    shard_optimizer: bool = False
    """Each of the processes that train a network together keeps a part of the optimiser's state alone (ZeRO stage 1),
    which with AdamW takes twice the memory of the weights. For large networks; others train a little faster without."""
    side_by_side: int = Field(default=0, ge=0)
    """Steps that run at once if they don't depend on each other, as teachers; 0 = as many as the GPUs hold, of which a
    training takes `training_processes` and any other step one, and one on a CPU. They share the cores; a step that none
    can run beside has all of them."""
    workers: int = Field(default=0, ge=0)
    """Threads for decoding and encoding; 0 = one per core, shared out among processes that work at once."""
    checkpoint_s: float = Field(default=60, ge=0)
    """Seconds between saved training states, which are uploaded if the root is remote."""
    trackers: Annotated[list[str], UniqueItems] | None = None
    """Tools in whose format the curves and numbers of a run are written to its folder, by the names of files in
    `evaluation/trackers/`: `tensorboard`, `wandb`, `mlflow`, each an extra of that name; null for `tensorboard`, if it
    is installed."""
    cache_gb: float = Field(default=CACHE_GB, gt=0, le=1e6)
    """Gigabytes of local disk for the cache of a remote root (`--root s3://...`)."""
