"""Check that a change of the code did not change results: files, losses and labels of a small recipe with all steps.

python -m benchmarks.same_results before.json                          # in the old checkout
python -m benchmarks.same_results after.json --against before.json     # in the changed one, on the same machine

The exit code is 1 if results differ, and every difference is printed. Which number format and memory layout are fastest
is measured once: the second run takes the first one's choices, as others would give other roundings.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

RECIPE = Path(__file__).with_suffix(".yaml")
MACHINE = "machine"
TIMINGS = {"images_per_s", "waited_s", "time", "seconds", "began"}
"""Log keys that differ between any two runs."""


def run(root: Path, choices: Mapping[str, str]) -> None:
    """Run the recipe and its comparison, with these files as the machine's measured choices."""
    import must  # noqa: PLC0415 - not needed with --root
    from flows.plan.selection import Selection  # noqa: PLC0415

    for name, text in choices.items():
        path = root / "machine" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    must.run(RECIPE, root)
    must.run(RECIPE, root, steps=Selection("compare"))


def results(root: Path) -> dict[str, dict[str, Any]]:
    """Return by step the hashes of its files, and the losses of every training step."""
    manifests = [json.loads(path.read_text("utf-8")) for path in root.glob("artifacts/*/*/manifest.json")]
    by_step = {}
    for manifest in sorted(manifests, key=lambda manifest: manifest["began"]):
        folder = root / "artifacts" / manifest["step"] / manifest["fingerprint"]
        files = {name: facts["sha256"] for name, facts in manifest["files"].items() if not name.startswith("log/")}
        by_step[manifest["step"]] = {**files, **dict(_losses(folder / "log"))}
    choices = {path.name: path.read_text("utf-8") for path in root.glob("machine/*.json")}
    return {**by_step, "labels": _labels(root), MACHINE: choices}


def _losses(folder: Path) -> Iterator[tuple[str, list[Any]]]:
    for path in sorted(folder.glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        yield f"log/{path.name}", [{key: line[key] for key in line.keys() - TIMINGS} for line in lines]


def _labels(root: Path) -> dict[str, str]:
    """Return the hash of every label shard, by maker: a store's name ends with its maker's digest."""
    return {
        f"{path.parent.name.rpartition('-')[0]}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.glob("labels/*/*.parquet"))
    }


def differences(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for every file, loss or label that differs."""
    return [
        f"{step}: {name}"
        for step in (one.keys() | other.keys()) - {MACHINE}
        for name in one.get(step, {}).keys() | other.get(step, {}).keys()
        if one.get(step, {}).get(name) != other.get(step, {}).get(name)
    ]


def main(
    out: Annotated[Path, typer.Argument(help="The JSON file to write.")],
    root: Annotated[Path | None, typer.Option(help="Read the results of this root instead of running.")] = None,
    against: Annotated[Path | None, typer.Option(help="Results of another checkout, to compare with.")] = None,
) -> None:
    """Run the recipe, write hashes of its results, and compare them."""
    before = json.loads(against.read_text("utf-8")) if against else {}
    if root:
        current = results(root)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder), before.get(MACHINE, {}))
            current = results(Path(folder))
    out.write_text(json.dumps(current, indent=1), "utf-8")
    if before:
        lines = differences(before, current)
        print("\n".join(sorted(lines)) or f"All results of {len(current)} steps are the same.")
        raise typer.Exit(bool(lines))


if __name__ == "__main__":
    typer.run(main)
