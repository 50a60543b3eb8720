"""Measure how fast a core makes training views of camera-size JPEGs, and of their copies that `resized` asks for.

    python -m benchmarks.resized
    python -m benchmarks.resized --short-side 512

The JPEGs are of 2000 x 1500 pixels: crops of scikit-image's photographs, enlarged, with a camera's noise. Originals
are decoded at a reduced size where a view allows that, as in any training. Times are processor time of a core: waiting
for the disk is not in them. All kinds of reading take turns.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageChops

from benchmarks.measure import RESULTS, describe_environment, medians, save_result, take_turns
from flows.plan.steps import build_steps
from ingest.dataset import IngestedSet
from ingest.resized import read_resized
from ingest.true_labels import dataset_shards
from pipeline.data.augment import seeded_generator
from pipeline.data.dataset import ImageDataset
from pipeline.recipe.augment import AugmentConfig
from pipeline.recipe.reader import parse_recipe
from pipeline.sources.photographs import PHOTOGRAPHS
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from pipeline.synthetic.textures import bundled_image
from selfsup.components.method import ViewKind
from selfsup.simclr import POLICY
from selfsup.stages.crops import draw_views

CAMERA, NOISE, QUALITY = (2000, 1500), 6, 90
"""Size in pixels, standard deviation of the noise, of 255, and JPEG quality of the originals."""
SPREAD = 97
"""A step through the images, so that those of a window are of all photographs."""
RECIPE = """
name: copies
data: {{photos: {{kind: folder, path: "{path}"}}}}
resized: {{photos: {short_side}}}
teachers: {{gabor: {{kind: analytic}}}}
pool: [photos]
student: {{weighting: equal, image_size: {size}}}
"""


def write_photographs(folder: Path, count: int) -> None:
    """Write so many JPEGs of a camera's size."""
    noise = Image.effect_noise(CAMERA, NOISE).convert("RGB")
    photographs = [Image.open(bundled_image("skimage", name)).convert("RGB") for name in PHOTOGRAPHS["skimage"]]
    for number in range(count):
        photograph, rng = photographs[number % len(photographs)], seeded_generator(number)
        width = rng.uniform(0.5, 1) * min(photograph.width, photograph.height * CAMERA[0] / CAMERA[1])
        height = width * CAMERA[1] / CAMERA[0]
        left, top = rng.uniform(0, photograph.width - width), rng.uniform(0, photograph.height - height)
        box = (left, top, left + width, top + height)
        image = photograph.resize(CAMERA, Image.Resampling.BICUBIC, box=box)
        moved = ImageChops.offset(noise, *rng.integers(0, CAMERA).tolist())
        ImageChops.add(image, moved, offset=-128).save(folder / f"{number:06d}.jpg", quality=QUALITY)


def make_artifacts(folder: Path, short_side: int, size: int) -> dict[str, Artifact]:
    """Ingest the JPEGs in `folder`/photos and copy them, by the steps of a recipe."""
    recipe = parse_recipe(RECIPE.format(path=folder / "photos", short_side=short_side, size=size), "copies")
    workspace, made = Workspace(Root.of(folder / "root")), dict[str, Artifact]()
    for step in build_steps(recipe):
        if step.kind.name in ("data", "resized"):
            inputs = Inputs({name: made[name] for name in step.inputs}, Runtime(workspace.root, workers=1))
            made[step.name], _ = workspace.get_or_make(step, inputs)
    return made


def labelled_view(images: ImageDataset, size: int, index: int) -> None:
    """Make a view as the student and teachers see it."""
    images.sample(index, size, "stretch", AugmentConfig(), (0, index))


def simclr_views(images: ImageDataset, size: int, index: int) -> None:
    """Make the two views of an image that SimCLR compares."""
    kinds = [ViewKind(size, POLICY)] * 2
    images.decode(index, lambda data: draw_views(data, kinds, seeded_generator(0, index)))


VIEWS: Mapping[str, Callable[[ImageDataset, int, int], None]] = {
    "a view for student or teacher": labelled_view,
    "two views for SimCLR": simclr_views,
}


def rate(make: Callable[[int], None], total: int, count: int) -> float:
    """Return of how many images a second a core makes views, measured on `count` of them."""
    began = time.thread_time()
    for number in range(count):
        make(number * SPREAD % total)
    return count / (time.thread_time() - began)


def view_difference(originals: ImageDataset, copies: ImageDataset, size: int, count: int) -> float:
    """Return the mean difference of a view's pixels, of 255, between originals and copies."""
    views = [
        [images.sample(index, size, "stretch", AugmentConfig(), (0, index)).image for images in (originals, copies)]
        for index in range(count)
    ]
    return float(np.mean([np.abs(one.astype(np.float64) - other).mean() for one, other in views]))


def kilobytes(images: ImageDataset) -> float:
    """Return the mean size of an image in the shards' tars."""
    return sum(shard.images.tar.size for shard in images.shards) / len(images) / 1000


def measure(folder: Path, options: Mapping[str, int]) -> dict[str, Any]:
    """Measure the images in a folder."""
    size, window = options["size"], options["window"]
    made = make_artifacts(folder, options["short_side"], size)
    originals = ImageDataset(dataset_shards(IngestedSet(made["data.photos"]), "train", lambda shard: {}))
    sets = {"originals": originals, "copies": read_resized(originals, Inputs(made, Runtime(made["data.photos"].root)))}
    measures = {
        f"{what}, {name}": functools.partial(
            rate, functools.partial(make, images, size), len(images), min(window, len(images))
        )
        for what, make in VIEWS.items()
        for name, images in sets.items()
    }
    return {
        **options,
        "images": len(originals),
        "kb": {name: kilobytes(images) for name, images in sets.items()},
        "rates": medians(take_turns(measures, 3)),
        "difference": view_difference(originals, sets["copies"], size, min(window, len(originals))),
    }


def table(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the result as rows, the heading first."""
    rates, kb = result["rates"], result["kb"]
    pairs = {what: [rates[f"{what}, {name}"] for name in ("originals", "copies")] for what in VIEWS}
    return [
        (f"views of {result['size']} pixels", "originals", f"copies of {result['short_side']} pixels", "ratio"),
        *(
            (f"{what}, images/s of a core", f"{old:.0f}", f"{new:.0f}", f"{new / old:.1f}")
            for what, (old, new) in pairs.items()
        ),
        ("on disk, kB an image", *(f"{size:.0f}" for size in kb.values()), f"{kb['copies'] / kb['originals']:.2f}"),
        ("mean difference of a view's pixels, of 255", "", f"{result['difference']:.1f}", ""),
    ]


def main(
    images: Annotated[int, typer.Option(min=100, help="Number of JPEGs.")] = 2000,
    short_side: Annotated[int, typer.Option(min=32, help="Of the copies, pixels.")] = 320,
    size: Annotated[int, typer.Option(min=32, help="Side of the views, pixels.")] = 224,
    window: Annotated[int, typer.Option(min=10, help="Images of a timed window.")] = 200,
) -> None:
    """Measure, print, and write `resized-SIDE-cpu` to the results."""
    environment = describe_environment("cpu")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "photos").mkdir()
        write_photographs(Path(folder) / "photos", images)
        result = measure(Path(folder), {"short_side": short_side, "size": size, "window": window})
    title = f"Training views of {images:,} JPEGs of {CAMERA[0]} x {CAMERA[1]} pixels, and of their copies"
    save_result(RESULTS / f"resized-{short_side}-cpu.json", title, {"measured": environment, **result}, table(result))


if __name__ == "__main__":
    typer.run(main)
