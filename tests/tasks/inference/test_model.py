"""Trained models on images of any form: what is predicted is what labelling stores, vectors are timm's."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

import tasks
from pipeline.errors import ConfigError, DataError
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import LabelSpace
from tasks.inference import phases
from tasks.inference.model import TrainedModel
from tasks.inference.opening import open_model_file
from tasks.network import Network
from tests.spaces import space_of

ONE_OF_EACH_TASK = {f"{task}_head": space_of(task, 4) for task in tasks.names()}
KINDS = {"kinds": LabelSpace("classification", ("a", "b"))}
Pixels = NDArray[np.uint8]
MakeModel = Callable[..., TrainedModel]


@pytest.fixture
def make_model(make_network: Callable[..., Network], runtime: Runtime, tmp_path: Path) -> MakeModel:
    """Saves an untrained network and opens it: (label space by head, fields of its config) -> the model."""

    def make(heads: Mapping[str, LabelSpace] = ONE_OF_EACH_TASK, **fields: Any) -> TrainedModel:
        folder = tmp_path / "network"
        folder.mkdir()
        make_network(heads, **fields).save(folder)
        return open_model_file(str(folder / "model.safetensors"), runtime)

    return make


@pytest.fixture
def photo(noise: Callable[..., Pixels], tmp_path: Path) -> Path:
    Image.fromarray(noise(1, 40, 60)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def assert_equal(one: Any, other: Any) -> None:
    assert one.values.keys() == other.values.keys()
    for head, value in one.values.items():
        for name, array in value.items():
            if name == "values":  # of regression, stored as float32: it keeps what the order of a sum leaves
                np.testing.assert_allclose(array, other.values[head][name], rtol=1e-5, atol=1e-6)
            else:
                np.testing.assert_array_equal(array, other.values[head][name], err_msg=f"{head} {name}")


def test_trained_model_predicts_the_same_of_path_image_and_array(make_model: MakeModel, photo: Path) -> None:
    model = make_model()
    of_path = model.predict(photo)
    assert of_path.name == str(photo)
    assert of_path.size == (60, 40)
    assert set(of_path.heads) == set(model.heads) == set(ONE_OF_EACH_TASK)
    image = Image.open(photo)
    several = model.predict([str(photo), image, np.asarray(image)], batch=2)
    assert [each.name for each in several] == [str(photo), "image 1", "image 2"]
    for labels in several:
        assert_equal(of_path, labels)
    assert model.predict([]) == []


def test_trained_model_turns_images_upright(make_model: MakeModel, photo: Path, tmp_path: Path) -> None:
    model = make_model()
    turned = Image.open(photo).transpose(Image.Transpose.ROTATE_90)  # anticlockwise; orientation 6 turns it back
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    for image in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert_equal(model.predict(photo), model.predict(image))


def test_trained_model_draws_and_describes(make_model: MakeModel, photo: Path) -> None:
    labels = make_model().predict(photo)
    for head, found in labels.heads.items():
        assert found.draw().size == (60, 40)
        assert found.describe()
        assert f"{head}: " in labels.describe()
    with pytest.raises(ConfigError, match="head 'nobody' is unknown"):
        labels["nobody"]


def test_trained_model_applies_thresholds(make_model: MakeModel, photo: Path) -> None:
    model = make_model({"boxes": LabelSpace("detection", ("a", "b")), **KINDS})
    every, none = model.predict(photo, threshold=0), model.predict(photo, threshold={"boxes": 1.0})
    assert len(every["boxes"].value["boxes"]) > len(none["boxes"].value["boxes"]) == 0
    assert none["kinds"].value["probs"].sum() == pytest.approx(1), "of a head that is not named, the task's own"
    with pytest.raises(ConfigError, match=r"threshold of head 'box' is unknown\. Did you mean 'boxes'"):
        model.predict(photo, threshold={"box": 0.5})
    with pytest.raises(ConfigError, match="threshold 5: is no probability"):
        model.predict(photo, threshold=5)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_trained_model_embeds_as_timm_does(
    backbone: str, make_model: MakeModel, make_network: Callable[..., Network], photo: Path, tmp_path: Path
) -> None:
    model = make_model(KINDS, backbone=backbone)
    network: Any = model.predictor.network
    torch.save(network.backbone.model.state_dict(), tmp_path / "backbone.pt")
    sized: dict[str, Any] = {"img_size": 32} if backbone == "test_vit" else {}
    published = timm.create_model(
        backbone, num_classes=0, checkpoint_path=str(tmp_path / "backbone.pt"), **sized
    ).eval()
    pixels = model.predictor.preprocessing(Image.open(photo).convert("RGB"), (60, 40))
    config = timm.data.resolve_data_config({}, model=published)
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    x = ((torch.tensor(pixels) / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = published(x)[0].numpy()
    found = model.embed(photo)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert model.embed([photo, photo]).shape == (2, model.width) == (2, len(expected))
    assert model.embed([]).shape == (0, model.width)


def test_trained_model_names_unreadable_images(make_model: MakeModel, photo: Path, tmp_path: Path) -> None:
    model = make_model(KINDS)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    missing = tmp_path / "missing.jpg"
    images = [photo, tmp_path / "broken.jpg", photo, missing]
    for predict in (model.predict, model.embed):
        with pytest.raises(DataError, match=r"broken.jpg: not an image"):
            predict(images)
    told: list[tuple[str, str]] = []
    found = list(model.stream(images, batch=3, on_error=lambda *problem: told.append(problem)))
    assert [labels.name for labels in found] == [str(photo)] * 2
    assert [name for name, _ in told] == [str(tmp_path / "broken.jpg"), str(missing)]
    vectors = list(model.stream_vectors(images, on_error=lambda *problem: told.append(problem)))
    assert len(vectors) == len(told) - 2 == 2


@pytest.mark.parametrize("given", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), 7])
def test_trained_model_refuses_what_is_no_image(given: Any, make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match=r"image 0: is .* would work"):
        make_model(KINDS).predict([given])


def test_trained_model_predicts_the_same_where_phases_overlap(
    make_model: MakeModel, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    expected = model.predict([photo] * 5, batch=2)
    monkeypatch.setattr(phases, "find_device", lambda _: "cuda")
    for one, other in zip(expected, model.predict([photo] * 5, batch=2), strict=True):
        assert_equal(one, other)


def test_trained_model_streams_with_few_images_in_memory(make_model: MakeModel, photo: Path) -> None:
    model, taken = make_model(KINDS), 0
    data = io.BytesIO(photo.read_bytes())
    given = []

    def images() -> Any:
        for _ in range(60):
            given.append(1)
            yield Image.open(data)

    for taken, _ in enumerate(model.stream(images(), batch=2), start=1):
        assert len(given) - taken < 10
    assert taken == 60


def test_open_model_file_refuses_other_files(make_model: MakeModel, runtime: Runtime, tmp_path: Path) -> None:
    file = Path(make_model().name)
    with pytest.raises(ConfigError, match="no such file"):
        open_model_file(str(tmp_path / "none.safetensors"), runtime)
    about = file.with_name("model.json")
    content = about.read_text("utf-8")
    about.write_text(content.replace("network-2", "timm_classifier"), "utf-8")
    with pytest.raises(ConfigError, match="a model of format 'timm_classifier'"):
        open_model_file(str(file), runtime)
    about.write_text(content.replace('"width": 16', '"width": 24'), "utf-8")
    with pytest.raises(DataError, match=r"its weights do not fit the model\.json beside it"):
        open_model_file(str(file), runtime)
    about.unlink()
    with pytest.raises(ConfigError, match=r"no model\.json beside it"):
        open_model_file(str(file), runtime)
