"""Test that a step for which the disk or the memory is too small says so, and leaves nothing that counts as whole."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import Shortage
from pipeline.steps.artifact import Artifact, Inputs, Step
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from tests.steps import make_step


def fill_the_disk(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    (out / "half.txt").write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def fill_the_memory(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    torch.empty(config["size"], dtype=torch.uint8)
    raise AssertionError("there is that much memory")


def fail_for_another_reason(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    torch.ones(2).view(3)
    raise AssertionError("torch makes three of two")


def step(run: str, **config: Any) -> Step:
    return make_step("writing", f"{__name__}:{run}", config)


def make(root: Root, one: Step) -> Artifact:
    return Workspace(root).make(one, Inputs({}, Runtime(root)))


def is_sealed(root: Root, one: Step) -> bool:
    return Workspace(root).find(one, one.fingerprint({})) is not None


def test_workspace_reports_a_full_disk_and_seals_nothing(any_root: Root) -> None:
    full = step("fill_the_disk")
    with pytest.raises(
        Shortage, match=r"writing: .* short of space: the disk that holds .* is full.*run the same command again"
    ):
        make(any_root, full)
    assert not is_sealed(any_root, full)


@pytest.mark.parametrize(
    ("size", "asked"), [(2**60, "1,073,741,824.0 GiB"), (2**63 - 1, "GiB"), ([2**62, 8], "overflowed")]
)
def test_workspace_reports_full_memory_and_seals_nothing(any_root: Root, size: Any, asked: str) -> None:
    greedy = step("fill_the_memory", size=size)
    with pytest.raises(Shortage, match=rf"writing: this machine is short of memory \(.*{asked}.*smaller batch"):
        make(any_root, greedy)
    assert not is_sealed(any_root, greedy)


def test_workspace_leaves_other_errors_as_they_are(any_root: Root) -> None:
    with pytest.raises(RuntimeError, match="shape"):
        make(any_root, step("fail_for_another_reason"))
