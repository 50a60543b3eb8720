"""Program that torchrun launches in a test: a fit that SIGTERM stops; the first process saves the weights.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.pipeline.training.launched OUT STEPS
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.errors import Stopped
from pipeline.models.checkpoint import write_tensors
from pipeline.steps import ranks
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from tests.pipeline.training.tiny_jobs import ConvNet, train
from tests.processes import stopped_by_signal


def main(out: Path, steps: int) -> int:
    """Train, and return the exit code."""
    runtime = stopped_by_signal(Runtime(Root.of(out), "cpu", "32", 1))
    try:
        trained = train(out, ConvNet(), runtime, steps=steps, batch=5, ema=0.5)
    except Stopped as stopped:
        print(stopped, flush=True)
        return stopped.exit_code
    if ranks.is_first():
        write_tensors(out / "weights.safetensors", trained.state_dict())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
