"""TensorBoard: event files, a folder for each step, so that curves of the same name are drawn together."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

from evaluation.report.run_record import RunRecord
from evaluation.trackers import scalars

PACKAGE = "tensorboard"


def write(run: RunRecord, folder: Path) -> None:
    """Write the event files into a folder, which `tensorboard --logdir` shows."""
    from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415 - an extra
    from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415
    from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: PLC0415

    for group, of_group in itertools.groupby(scalars(run), key=lambda scalar: scalar.group):
        writer = EventFileWriter(str(folder / re.sub(r"[^\w./-]", "_", group)))
        for scalar in of_group:
            value = Summary.Value(tag=scalar.name, simple_value=scalar.value)
            event = Event(wall_time=time.time(), step=scalar.step, summary=Summary(value=[value]))
            writer.add_event(event)
        writer.close()
