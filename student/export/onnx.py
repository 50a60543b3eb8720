"""Export of the student's predictions as an ONNX graph, which needs neither torch nor this project.

Input: `images` (B, 3, S, S) uint8, RGB, or (B, C, S, S) float32 of images of C other channels, each a whole image
resized to the square of side S; for a student with `resize: pad`, resized and padded at the right or the bottom, where
outputs mean nothing.

Outputs: each head's prediction, called `<head>_<array>`: `probs` (B, K); `classes` and `confidence` (B, S/4, S/4);
`depth` (B, S/4, S/4); `normals` (B, S/4, S/4, 3); `responses` of textures (B, S/4, S/4, K); `vector` of features (B,
K); `map` of feature maps (B, S/16, S/16, K); `values` of regression (B, S/4, S/4, K). Detection's `boxes` (N, 4), x0 y0
x1 y1 relative to the input, `scores` (N,) and `classes` (N,) are of one image, and so are those of masks, with `masks`
(N, 28, 28), probabilities of the cells of each box, and those of keypoints, with `keypoints` (N, K, 2), x y relative to
the input, and `keypoint_scores` (N, K): a graph with any of them takes one image at a time; others take batches of any
size.

The graph's metadata (key `must`, JSON) holds S, `resize`, the classes of every head, its keypoints and the unit of
depth.
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

from pipeline.data.bands import RGB
from pipeline.errors import ConfigError, install_command, require_one_of
from pipeline.steps.artifact import Artifact
from pipeline.storage.atomic import atomic_write
from tasks.network import Network
from tasks.rcnn import RCNNTask

SUFFIX = ".onnx"
SUFFIX_REASON = "readers know the format by the suffix"
ONE_IMAGE = (
    "It takes one image at a time: each image has as many boxes as are found in it, and torch can write that for one "
    "image only. A graph of other heads, chosen with --head, takes batches of any size."
)
"""Said of graphs with a head that finds objects."""
PER_IMAGE = "images"
"""Key of predictions that are lists with one entry per image: the objects found in it."""


class Graph(nn.Module):
    """Module that returns a network's predictions as a flat tuple; `owners` are set by the first call."""

    def __init__(self, network: Network, heads: Sequence[str]) -> None:
        super().__init__()
        self.network, self.heads = network, tuple(heads)
        self.owners: dict[str, str] = {}
        """The head of each output by the output's name, in order."""

    @property
    def names(self) -> list[str]:
        return list(self.owners)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(images, self.heads)
        side = self.network.config.image_size
        arrays = [
            (f"{head}_{name}", head, tensor)
            for head in self.heads
            for name, tensor in _arrays(self.network.tasks[head].predict(outputs[head]), side)
        ]
        self.owners = {name: head for name, head, _ in arrays}
        return tuple(tensor for _, _, tensor in arrays)


def _arrays(prediction: dict[str, Any], side: int) -> Iterator[tuple[str, Tensor]]:
    if PER_IMAGE not in prediction:
        yield from prediction.items()
        return
    (detections,) = prediction[PER_IMAGE]
    yield "boxes", detections["boxes"] / side
    yield "scores", detections["scores"]
    yield "classes", detections["labels"] - 1
    if "masks" in detections:
        yield "masks", detections["masks"]
    if "keypoints" in detections:
        yield "keypoints", detections["keypoints"] / side
        yield "keypoint_scores", detections["keypoint_scores"]


def export(student: Artifact, to: Path, heads: Sequence[str]) -> list[str]:
    """Write the graph of the student's heads to `to`, and return a line for each of its inputs and outputs."""
    try:
        import onnx  # noqa: PLC0415 - an extra
        import onnxscript  # noqa: F401, PLC0415 - what torch writes the graph with
    except ImportError as error:
        raise ConfigError(f"--to onnx needs the extra onnx: {install_command('onnx')}") from error
    network = student.load_all(Network.load)
    chosen = [require_one_of(head, network.tasks, "--head") for head in heads] or list(network.tasks)
    model = onnx.load_from_string(_trace(network, chosen))
    spaces = network.config.spaces()
    about = {
        "image_size": network.config.image_size,
        "resize": network.config.resize,
        "heads": {head: spaces[head].to_json() for head in chosen},
        "student": student.fingerprint,
    }
    onnx.helper.set_model_props(model, {"must": json.dumps(about)})
    onnx.checker.check_model(model)
    with atomic_write(to) as part:
        onnx.save(model, part)
    lines = [_describe(value) for value in (*model.graph.input, *model.graph.output)]
    return [*lines, ONE_IMAGE] if _finds_objects(network, chosen) else lines


def _finds_objects(network: Network, heads: Sequence[str]) -> bool:
    return any(isinstance(network.tasks[head], RCNNTask) for head in heads)


@torch.no_grad()
def _trace(network: Network, heads: Sequence[str]) -> bytes:
    """Return the graph as bytes. Finding objects needs torch's older exporter, which fixes the batch size."""
    size = network.config.image_size
    objects, channels = _finds_objects(network, heads), network.config.channels
    dtype = torch.uint8 if channels == RGB else torch.float32
    images = torch.zeros((1 if objects else 2, channels, size, size), dtype=dtype)
    graph = Graph(network, heads).eval()
    graph(images)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": graph.names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about themselves
        if objects:
            found = {head for head in heads if _finds_objects(network, [head])}
            axes = {name: {0: f"{head}_count"} for name, head in graph.owners.items() if head in found}
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "graph.onnx"
                torch.onnx.export(graph, (images,), file, dynamo=False, dynamic_axes=axes, **names)
                return file.read_bytes()
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.onnx.export(graph, (images,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
    assert program is not None
    return program.model_proto.SerializeToString()


def _describe(value: Any) -> str:
    """Return a line with name and shape of an input or output of the graph."""
    sides = [side.dim_param or str(side.dim_value) for side in value.type.tensor_type.shape.dim]
    return f"    {value.name} ({', '.join(sides)})"
