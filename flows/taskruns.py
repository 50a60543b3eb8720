"""A run as a Prefect flow: a task run per step, one after the other, in this process.

What is done is known from disk alone. Prefect shows a run and decides nothing, so it caches and keeps no result: a
step found on disk is a task run that ends as `Cached`. Tasks are called, not submitted: a signal reaches the step
that is at work, and there is one device to work on.

Import this with Prefect's settings in place (`flows.selftrain`): Prefect reads them when it is imported.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import json
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from uuid import UUID

import prefect.runtime.flow_run
from prefect import flow, task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.events.worker import EventsWorker
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled, Completed, State

from flows.run import Run, carry_out, stopping
from pipeline.artifacts import Artifact, Step
from pipeline.errors import MustError, Stopped
from pipeline.runtime import Runtime

EVERY_S = 5.0
"""Between updates of a step's progress in Prefect."""
RECORDED_S = 30.0
"""How long the end of a run waits for the server to have written down its task runs."""
COLUMNS = ("task", "dataset", "split", "metric", "better", "model", "value", "n", "seed")


def carry_out_as_flow(run: Run) -> dict[str, Artifact]:
    """All steps as task runs of one flow run. Raises what a step raised, or MustError if Prefect itself failed."""
    shown = Shown(run)
    try:
        shown.flow_run()
    except TerminationSignal:  # a SIGTERM in the moments when Prefect's own handler is in place
        run.runtime.stop.set()
        run.runtime.check_stop("Prefect")
    finally:
        if shown.problem:
            error, trace = shown.problem
            raise error.with_traceback(trace)
    return shown.artifacts
