"""The recipe's `runtime` section: the machine. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pipeline.recipe.base import BaseConfig
from pipeline.storage.root import CACHE_GB

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "32", "bf16"]


class RuntimeConfig(BaseConfig):
    """The machine: nothing here changes a result's fingerprint."""

    device: Device = "auto"
    """`auto` takes a GPU if there is one."""
    precision: Annotated[Precision, BeforeValidator(lambda value: str(value) if value == 32 else value)] = "auto"
    """`auto` measures whether bfloat16 is faster, for every model and for training and prediction apart."""
    runner: Literal["inline", "threads", "process", "ray", "dask"] = "threads"
    """`threads` runs the steps as a Prefect flow, each in a process of its own; `process`, `ray` and `dask` do so too,
    and label in many processes at once; `inline` runs the steps one after the other in this process, without Prefect.
    """
    address: str | None = None
    """Of a Ray or Dask cluster, as in ray://head:10001 or tcp://scheduler:8786; else they work on this machine."""
    label_workers: int = Field(default=0, ge=0)
    """Processes of this machine that label at once, with `process`, `ray` and `dask`; 0 = one per GPU, or per core."""
    training_processes: int = Field(default=1, ge=1)
    """Processes that train a network together, each on a GPU of its own; on a CPU they share its cores."""
    side_by_side: int = Field(default=0, ge=0)
    """Steps at work at once, for teachers that don't depend on each other; 0 = one per GPU, and one on a CPU."""
    workers: int = Field(default=0, ge=0)
    """Threads for decoding and encoding; 0 = one per core."""
    checkpoint_s: float = Field(default=60, ge=0)
    """Seconds between training states on disk, which are uploaded if the root is elsewhere."""
    cache_gb: float = Field(default=CACHE_GB, gt=0)
    """Gigabytes of this machine's disk for what was read from a root that is elsewhere (`--root s3://...`)."""
