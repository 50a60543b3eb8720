"""The student's predictions as a graph that needs neither torch nor this project: ONNX.

One input, `images`: uint8 (B, 3, S, S), RGB, the whole image resized to the square of side S. For every head its task's
prediction, `<head>_<array>`: `probs` (B, K); `classes` and `confidence` (B, S/4, S/4); `depth` (B, S/4, S/4);
`normals` (B, S/4, S/4, 3). Detection's `boxes` (N, 4), x0 y0 x1 y1 relative to the image, `scores` (N,) and `classes`
(N,) are those of one image: a graph with detection takes one at a time, others take batches of any size.
The graph's metadata (key `must`, JSON) has S, the classes of every head and what depth is measured in.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, installing, require_one_of
from pipeline.steps.artifact import Artifact
from pipeline.storage.atomic import atomic_write
from tasks.network import Network

SUFFIX = ".onnx"
WHY = "readers know the format by the suffix"
LISTS = "images"
"""Where a task predicts lists of different lengths, they are under this name, one entry per image."""


class Graph(nn.Module):
    """A network's predictions as a flat tuple; `names` says what each one is."""

    def __init__(self, network: Network, heads: Sequence[str]) -> None:
        super().__init__()
        self.network, self.heads = network, tuple(heads)
        self.names: list[str] = []

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(images, self.heads)
        found = [
            (f"{head}_{name}", tensor)
            for head in self.heads
            for name, tensor in _arrays(self.network.tasks[head].predict(outputs[head]))
        ]
        self.names = [name for name, _ in found]
        return tuple(tensor for _, tensor in found)


def _arrays(prediction: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    if LISTS not in prediction:
        yield from prediction.items()
        return
    (found,) = prediction[LISTS]
    yield "boxes", found["boxes"] / prediction["input"]
    yield "scores", found["scores"]
    yield "classes", found["labels"] - 1


def export(student: Artifact, to: Path, heads: Sequence[str]) -> list[str]:
    """Write the prediction graph of a trained student's heads to `to`, and return how to run it."""
    try:
        import onnx  # noqa: PLC0415 - an extra
        import onnxscript  # noqa: F401, PLC0415 - what torch writes the graph with
    except ImportError as error:
        raise ConfigError(f"--to onnx needs the extra onnx: {installing('onnx')}") from error
    network = student.load_all(Network.load)
    chosen = [require_one_of(head, network.tasks, "--head") for head in heads] or list(network.tasks)
    model = onnx.load_from_string(_traced(network, chosen))
    spaces = network.config.spaces()
    about = {
        "image_size": network.config.image_size,
        "heads": {head: spaces[head].to_json() for head in chosen},
        "student": student.fingerprint,
    }
    onnx.helper.set_model_props(model, {"must": json.dumps(about)})
    onnx.checker.check_model(model)
    with atomic_write(to) as part:
        onnx.save(model, part)
    return [_shape(value) for value in (*model.graph.input, *model.graph.output)]


@torch.no_grad()
def _traced(network: Network, heads: Sequence[str]) -> bytes:
    """The graph in bytes. Lists can only be written by torch's older exporter, which fixes the size of the batch."""
    size = network.config.image_size
    one = any(network.tasks[head].space.task == "detection" for head in heads)
    images = torch.zeros((1 if one else 2, 3, size, size), dtype=torch.uint8)
    graph = Graph(network, heads).eval()
    graph(images)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": graph.names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about themselves
        if one:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "graph.onnx"
                torch.onnx.export(graph, (images,), file, dynamo=False, **names)
                return file.read_bytes()
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.onnx.export(graph, (images,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
    assert program is not None
    return program.model_proto.SerializeToString()


def _shape(value: Any) -> str:
    """A line about an input or output of the graph."""
    sides = [side.dim_param or str(side.dim_value) for side in value.type.tensor_type.shape.dim]
    return f"    {value.name} ({', '.join(sides)})"
