"""The student as an ONNX graph: onnxruntime predicts what torch predicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.steps.artifact import Artifact
from pipeline.stores.labels import LabelSpace
from pipeline.stores.skeleton import Skeleton
from student.export import export_student
from student.export.onnx import Graph
from tasks.network import Network
from tests.disk import made_in

onnxruntime = pytest.importorskip("onnxruntime")

CLOSE = 1e-4
"""Largest difference of an output from torch's, for values around 1."""
DENSE = {
    "kinds": LabelSpace("classification", ("cat", "dog", "emu")),
    "findings": LabelSpace("multilabel", ("edema", "mass")),
    "masks": LabelSpace("segmentation", ("road", "sky")),
    "far": LabelSpace("depth"),
    "near": LabelSpace("depth", (), "relative"),
    "normals": LabelSpace("normals"),
    "gabor": LabelSpace("texture", ("4@45", "4@135")),
    "dino": LabelSpace("features", ("1", "2")),
    "dino_map": LabelSpace("feature_maps", ("1", "2", "3")),
}
ONE_OF_EACH = {name: DENSE[name] for name in ("kinds", "masks")}
"""A head on the pooled features, and one on the maps."""
BOXES = {"boxes": LabelSpace("detection", ("car", "cow"))}
FACE = Skeleton(("nose", "left_eye", "right_eye"))
OBJECTS = {
    **BOXES,
    "things": LabelSpace("masks", ("car", "cow")),
    "faces": LabelSpace("keypoints", ("cow",), skeleton=FACE),
}
Made = tuple[Network, Artifact]


@pytest.fixture
def make_student(make_network: Callable[..., Network], tmp_path: Path) -> Callable[..., Made]:
    """Makes an untrained network and its artifact: (heads, a change to the network, config fields) -> both."""

    def make(
        heads: Mapping[str, LabelSpace], change: Callable[[Network], None] = lambda network: None, **fields: Any
    ) -> Made:
        network = make_network(heads, **fields).eval()
        change(network)
        (tmp_path / "student").mkdir()
        network.save(tmp_path / "student")
        made = made_in(tmp_path / "student")
        return network, Artifact(made.root, made.path, {**made.manifest, "fingerprint": "f" * 16})

    return make


def pictures(seed: int, count: int, side: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def outputs(to: Path, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Run the graph in onnxruntime, and return its outputs by name."""
    session = onnxruntime.InferenceSession(to, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images}), strict=True))


@torch.no_grad()
def wanted(network: Network, heads: Sequence[str], images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    graph = Graph(network, heads)
    found = graph(torch.from_numpy(images))
    return {name: tensor.numpy() for name, tensor in zip(graph.names, found, strict=True)}


def check(found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=CLOSE, rtol=CLOSE, err_msg=name)


def check_any_batch_size(to: Path, network: Network, heads: Sequence[str]) -> None:
    for count in (1, 2, 5):
        images = pictures(count, count)
        check(outputs(to, images), wanted(network, heads, images))


def test_onnx_export_predicts_as_torch_for_any_batch_size(make_student: Callable[..., Made], tmp_path: Path) -> None:
    network, student = make_student(DENSE)
    lines = export_student("onnx", student, tmp_path / "student.onnx")
    assert "    kinds_probs (batch, 3)" in lines
    assert all(line.startswith("    ") for line in lines), "no limits"
    check_any_batch_size(tmp_path / "student.onnx", network, list(DENSE))


def test_onnx_export_predicts_boxes_as_torch_one_image_at_a_time(
    make_student: Callable[..., Made], tmp_path: Path
) -> None:
    """Noise and a black image: the graph traced with one image holds for others with more or fewer boxes."""
    network, student = make_student({**OBJECTS, "kinds": DENSE["kinds"]})
    lines = export_student("onnx", student, tmp_path / "student.onnx")
    assert "    boxes_scores (boxes_count)" in lines
    assert any(line.startswith("    things_masks (things_count, ") for line in lines)
    assert any(line.startswith("    faces_keypoints (faces_count, ") for line in lines)
    assert lines[-1].startswith("It takes one image at a time")
    counts = set()
    for seed in range(8):
        images = pictures(seed, 1) if seed else np.zeros((1, 3, 32, 32), np.uint8)
        expected = wanted(network, [*OBJECTS, "kinds"], images)
        found = outputs(tmp_path / "student.onnx", images)
        check(found, expected)
        assert found["boxes_boxes"].min(initial=0) >= 0
        assert found["boxes_boxes"].max(initial=0) <= 1
        assert set(found["boxes_classes"].tolist()) <= {0, 1}
        counts.add(len(found["boxes_scores"]))
    assert len(counts) > 1, "the images need different numbers of boxes"


def test_onnx_export_of_image_without_boxes(make_student: Callable[..., Made], tmp_path: Path) -> None:
    def sure_of_nothing(network: Network) -> None:
        head: Any = network.heads["boxes"]
        head.boxes.box_predictor.cls_score.bias.data[0] = 100.0

    _, student = make_student(BOXES, change=sure_of_nothing)
    export_student("onnx", student, tmp_path / "student.onnx")
    found = outputs(tmp_path / "student.onnx", pictures(0, 1))
    assert [found[name].shape for name in ("boxes_boxes", "boxes_scores", "boxes_classes")] == [(0, 4), (0,), (0,)]


def test_onnx_export_of_chosen_heads_with_metadata(make_student: Callable[..., Made], tmp_path: Path) -> None:
    network, student = make_student({**BOXES, **ONE_OF_EACH}, backbone="test_vit")
    export_student("onnx", student, tmp_path / "chosen.onnx", list(ONE_OF_EACH))
    session = onnxruntime.InferenceSession(tmp_path / "chosen.onnx", providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["must"])
    assert about == {
        "image_size": 32,
        "resize": "stretch",
        "heads": {name: space.to_json() for name, space in ONE_OF_EACH.items()},
        "student": "f" * 16,
    }
    check_any_batch_size(tmp_path / "chosen.onnx", network, list(ONE_OF_EACH))
    with pytest.raises(ConfigError, match=r"--head 'mask' is unknown\. Did you mean 'masks'"):
        export_student("onnx", student, tmp_path / "other.onnx", ["mask"])
    assert not (tmp_path / "other.onnx").exists()


def test_onnx_export_names_the_extra_to_install(
    make_student: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, student = make_student(BOXES)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"needs the extra onnx: uv pip install .*\[onnx\]"):
        export_student("onnx", student, tmp_path / "student.onnx")


@pytest.mark.parametrize(
    ("form", "name", "message"),
    [
        ("onnxx", "a.onnx", "--to 'onnxx' is unknown. Did you mean 'onnx'"),
        ("onnx", "a.pt", "readers know the format by the suffix; end it in .onnx"),
        ("safetensors", "a.pth", "timm reads the format off the suffix; end it in .safetensors"),
    ],
)
def test_export_student_refuses_unknown_form_or_suffix(
    form: str, name: str, message: str, make_student: Callable[..., Made], tmp_path: Path
) -> None:
    _, student = make_student(BOXES)
    with pytest.raises(ConfigError, match=message):
        export_student(form, student, tmp_path / name)


@pytest.mark.parametrize(("form", "name"), [("onnx", "a.onnx"), ("safetensors", "a.safetensors")])
def test_export_student_replaces_no_file(
    form: str, name: str, make_student: Callable[..., Made], tmp_path: Path
) -> None:
    _, student = make_student(BOXES)
    (tmp_path / name).write_text("mine", "utf-8")
    with pytest.raises(ConfigError, match=rf"{name}: already exists; name another file, or remove it"):
        export_student(form, student, tmp_path / name)
    assert (tmp_path / name).read_text("utf-8") == "mine"
