"""Fixtures for all tests: one compute thread, real data if there is any, and tiny networks, stores and artifacts."""

from __future__ import annotations

import dataclasses
import gc
import io
import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: it reads them once
os.environ.setdefault("MKL_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.dataset import DatasetShard, LabelSource
from pipeline.errors import PROJECT
from pipeline.steps.artifact import Artifact, Inputs, Step
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from pipeline.stores.images import ImageShard, NewImage, ShardWriter
from pipeline.stores.label_writer import LabelWriter, store_metadata
from pipeline.stores.labels import Label, LabelSpace, Value
from tests.disk import image_shard, stored
from tests.made_once import make_once
from tests.processes import Launcher

if TYPE_CHECKING:
    from tasks.network import Network

# The same examples in every run, none kept on disk; no deadline, for machines that do other things as well.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None, max_examples=50)
hypothesis.settings.load_profile("house")

pytest_plugins = ["tests.run_fixtures"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that start processes and servers: short ones then fill the end on every core.

    So do those of the project as a whole, which have files without a folder.
    """

    def is_short(item: pytest.Item) -> bool:
        folder, *files = item.path.relative_to(PROJECT / "tests").parts
        return bool(files) and folder not in ("flows", "docs")

    items.sort(key=is_short)


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
Pixels = NDArray[np.uint8]
Labels = Mapping[str, tuple[Label, Sequence[Value | None]]]

WORLD = """
name: world
data:
  pool: {kind: scenes, count: 7, seed: 1, size: 48}
  truth: {kind: scenes, count: 9, seed: 2, size: 48, val: 3, tasks: [classification, detection, segmentation, depth]}
shard_images: 4
teachers:
  kinds: {kind: supervised, task: classification, data: truth, backbone: test_resnet, image_size: 32, width: 16,
    steps: 1, batch: 4, require: none}
  masks: {kind: supervised, task: segmentation, data: truth, backbone: test_resnet, image_size: 32, width: 16,
    steps: 1, batch: 4, require: none}
  boxes: {kind: supervised, task: detection, data: truth, backbone: test_resnet, image_size: 32, width: 16,
    proposals: 16, steps: 1, batch: 4, require: none}
  depth: {kind: supervised, task: depth, data: truth, backbone: test_resnet, image_size: 32, width: 16,
    steps: 1, batch: 4, require: none, lr: 0.002}
  gabor: {kind: analytic, image_size: 32, wavelengths: [4.0]}
pool: [pool, truth]
student: {backbone: test_resnet, image_size: 32, width: 16, proposals: 16, steps: 2, batch: 4, loss_weights: {gabor: 1}}
"""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: `MUST_DATA`, or `../shared/data`; without one the test is skipped."""
    folder = Path(os.environ.get("MUST_DATA", SHARED))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder; MUST_DATA names another")
    return folder


def png(pixels: Pixels) -> bytes:
    """Return an RGB image (H, W, 3) uint8 as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def spawner() -> Any:
    """Makes processes from one that has torch loaded: each starts at once, and none shares a thread with the tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["must", "flows.run.run", "student.train", "evaluation.evaluate", "evaluation.report.report"]
    )
    multiprocessing.forkserver.ensure_running()  # it loads beside the first tests
    return context


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    """This machine's CPU in 32 bits with one worker, its root in the test's own folder."""
    return Runtime(Root.of(tmp_path / "root"), "cpu", "32", 1)


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[[str, Sequence[Pixels]], ImageShard]:
    """Writes an image shard of PNGs: (name, images) -> the shard, opened."""

    def make(name: str, images: Sequence[Pixels]) -> ImageShard:
        writer = ShardWriter(tmp_path / "images", name)
        for number, pixels in enumerate(images):
            writer.add(NewImage(png(pixels), "png", pixels.shape[1], pixels.shape[0], f"{name}/{number}.png"))
        writer.close()
        return image_shard(writer.tar_path)

    return make


@pytest.fixture
def make_dataset_shard(
    tmp_path: Path, make_images: Callable[[str, Sequence[Pixels]], ImageShard]
) -> Callable[[str, Sequence[Pixels], Labels], DatasetShard]:
    """Writes an image shard and its label shards: (name, images, by head its label and values) -> a dataset shard."""

    def make(name: str, images: Sequence[Pixels], labels: Labels) -> DatasetShard:
        shard = make_images(name, images)
        label_sources = {}
        for head, (label, values) in labels.items():
            path = tmp_path / "labels" / head / f"{name}.parquet"
            writer = LabelWriter(path, label, store_metadata(label, "test", shard.sha256))
            for key, value in zip(shard.keys, values, strict=True):
                writer.add(key, None if value is None else label.encode(value), "none" if value is None else "ok")
            writer.close()
            label_sources[head] = (LabelSource(stored(path), label),)
        return DatasetShard(shard, np.arange(len(shard)), label_sources)

    return make


@pytest.fixture
def noise() -> Callable[..., Pixels]:
    """Makes images of random pixels: (seed, height, width) -> (H, W, 3) uint8, another for each seed."""

    def make(seed: int, height: int = 32, width: int = 32) -> Pixels:
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture
def make_network() -> Callable[..., Network]:
    """Builds a small network: (label space by head, then any of NetworkConfig's fields) -> the network."""

    def make(heads: Mapping[str, LabelSpace], **fields: Any) -> Network:
        from tasks.network import Network, NetworkConfig  # noqa: PLC0415

        spaces = {name: space.to_json() for name, space in heads.items()}
        small = {"backbone": "test_resnet", "image_size": 32, "width": 16, "proposals": 16}
        return Network(NetworkConfig(heads=spaces, **{**small, **fields}))

    return make


@dataclasses.dataclass(frozen=True)
class World:
    """The artifacts of a recipe up to its pool's labels, with the steps and the workspace to make the others."""

    steps: dict[str, Step]
    artifacts: dict[str, Artifact]
    workspace: Workspace
    runtime: Runtime

    def inputs(self, step: str, without: Sequence[str] = ()) -> Inputs:
        """Return the inputs of a step, without some of them by name."""
        names = [name for name in self.steps[step].inputs if name not in without]
        return Inputs({name: self.artifacts[name] for name in names}, self.runtime)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two tiny sets of generated scenes, five barely trained teachers, and their labels of both sets."""
    from flows.plan.steps import build_steps  # noqa: PLC0415 - half the product
    from pipeline.recipe.reader import parse_recipe  # noqa: PLC0415
    from tasks import training  # noqa: F401, PLC0415

    gc.collect()
    gc.freeze()  # keeps the collector from walking the libraries' objects, half a second each time
    steps = {step.name: step for step in build_steps(parse_recipe(WORLD, "world"))}

    def make_world(root: Path) -> World:
        """Make the artifacts in a root; those that are there are found."""
        workspace, artifacts = Workspace(Root.of(root)), dict[str, Artifact]()
        runtime = Runtime(workspace.root, "cpu", "32", 1)
        for name in list(steps)[: list(steps).index("student")]:
            inputs = {other: artifacts[other] for other in steps[name].inputs}
            artifacts[name], _ = workspace.get_or_make(steps[name], Inputs(inputs, runtime))
        return World(steps, artifacts, workspace, runtime)

    made = make_once(tmp_path_factory, "world", make_world)
    yield make_world(shutil.copytree(made, tmp_path_factory.mktemp("world") / "root"))
    gc.unfreeze()


@pytest.fixture
def launcher(spawner: Any) -> Iterator[Launcher]:
    """Yield a launcher, which calls functions in several processes at once, and end its processes."""
    processes = Launcher(spawner)
    yield processes
    processes.end()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server."""
    from tests.s3 import serve  # noqa: PLC0415 - loads the server

    with serve() as address:
        yield address


@pytest.fixture
def bucket(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket of the test's own, with the environment to reach it, and an empty cache."""
    from tests.s3 import ENVIRONMENT, system  # noqa: PLC0415

    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": s3, "MUST_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    system().mkdir(name)
    return f"s3://{name}"


@pytest.fixture(params=["local", "s3"])
def any_root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """An empty root on this machine, and one in a bucket, under a name with characters that have to be quoted."""
    if request.param == "local":
        return Root.of(tmp_path / "root")
    return Root.of(f"{request.getfixturevalue('bucket')}/my root #1 (50%) [ü]'&+")


@pytest.fixture
def brisk_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a holder notice soon that it lost its lock; as it is, that takes ten seconds and more."""
    monkeypatch.setattr("pipeline.storage.lock.RENEW_S", 0.3)
    monkeypatch.setattr("pipeline.storage.lock.GIVEN_UP_S", 1.0)
