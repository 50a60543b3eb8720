"""A device that computes while the host goes on: the same training, with its losses read a step later."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import DataError, Stopped
from pipeline.models.checkpoint import load_state
from pipeline.recipe.base import ValidateConfig
from pipeline.training import device_prefetch
from pipeline.training.taken_step import TOTAL, PassResult, TakenStep
from pipeline.training.validation import Validation
from tests.pipeline.training.tiny_jobs import (
    LOG,
    STATE,
    STEPS,
    Batch,
    ConvNet,
    Linears,
    NumberedStream,
    RootMeanSquare,
    assert_same,
    calling_back,
    infinite_image,
    log,
    make_batch,
    non_finite_gradient,
    stopping,
    train,
    train_with_result,
)


@pytest.fixture
def asynchronous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the CPU as a device that computes while the host goes on."""
    monkeypatch.setattr(device_prefetch, "ASYNCHRONOUS", ("cuda", "cpu"))


def validation(every: int) -> Validation:
    config = ValidateConfig.model_validate({"every": every, "keep": "best"})
    return Validation(
        config, lambda model, compute: {"norm": float(next(model.parameters()).detach().norm())}, "norm", "lower"
    )


@pytest.mark.parametrize(
    "fields",
    [{}, {"accumulate": 4, "ema": 0.5}, {"validation": 1}, {"validation": 4, "optimizer": "sgd"}, {"checkpoint_s": 0}],
    ids=str,
)
def test_fit_trains_alike_on_an_asynchronous_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    given = {**fields, "validation": validation(fields["validation"]) if "validation" in fields else None}
    at_once = train(tmp_path / "at once", ConvNet(), **given)
    monkeypatch.setattr(device_prefetch, "ASYNCHRONOUS", ("cpu",))
    assert_same(train(tmp_path / "later", ConvNet(), **given), at_once)
    assert log(tmp_path / "later") == log(tmp_path / "at once")


@pytest.mark.usefixtures("asynchronous")
def test_fit_reads_the_losses_of_a_step_once_the_next_one_is_given(tmp_path: Path) -> None:
    taken: list[int] = []

    class Watched(Linears):
        """Notes its steps."""

        def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            taken.append(len(taken) + 1)
            return super().mean(batch)

    reported: list[tuple[int, int]] = []
    train(tmp_path, Watched(), calling_back(lambda step, runtime: reported.append((step, taken[-1]))))
    assert reported == [(step, min(step + 1, STEPS)) for step in range(1, STEPS + 1)]


@pytest.mark.usefixtures("asynchronous")
def test_fit_saves_no_step_whose_losses_were_not_read(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", ConvNet())
    for seed, after in enumerate((1, 3, STEPS)):
        with pytest.raises(Stopped):
            train(tmp_path / "parts", ConvNet(seed), stopping(after))
        assert load_state(tmp_path / "parts" / STATE)["step"] == len(log(tmp_path / "parts")) == min(after + 1, STEPS)
    assert_same(train(tmp_path / "parts", ConvNet(9)), whole)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


@pytest.mark.usefixtures("asynchronous")
@pytest.mark.parametrize(
    "case",
    [
        (Linears, infinite_image, r"the loss is (inf|nan) at step 4\. Images of the batch: 3\.2, 3\.3\."),
        (
            RootMeanSquare,
            non_finite_gradient,
            r"the gradient is .* step 4\. Images of the batch: 3\.0, 3\.1, 3\.2, 3\.3\.",
        ),
    ],
    ids=["loss", "gradient"],
)
@pytest.mark.parametrize("checkpoint_s", [0, 1e9])
def test_fit_names_the_step_of_a_non_finite_value_that_it_reads_later(
    tmp_path: Path, case: Any, checkpoint_s: float
) -> None:
    objective, make, says = case
    with pytest.raises(DataError, match=rf"^teacher\.t: {says}"):
        train(tmp_path, objective(), stream=NumberedStream(make), checkpoint_s=checkpoint_s, accumulate=2)
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3]
    assert (tmp_path / STATE).exists() == (checkpoint_s == 0)
    if checkpoint_s == 0:
        assert load_state(tmp_path / STATE)["step"] == 3
        assert all(tensor.isfinite().all() for tensor in load_state(tmp_path / STATE)["model"].values())


@pytest.mark.usefixtures("asynchronous")
def test_prefetch_to_device_splits_the_next_batch_on_a_thread_and_ends_it(tmp_path: Path) -> None:
    threads: set[str] = set()

    class Watched(NumberedStream):
        def batches(self, start: int) -> Any:
            for batch in super().batches(start):
                threads.add(threading.current_thread().name)
                yield batch

    stream = Watched()
    with pytest.raises(Stopped):
        train(tmp_path, Linears(), stopping(after=2), stream=stream)
    assert stream.given == [0, 1, 2, 3], "one ahead of the step that is given while the second is read"
    assert threads
    assert not any(name == threading.current_thread().name for name in threads)
    assert not [thread for thread in threading.enumerate() if thread.name in threads]


@pytest.mark.usefixtures("asynchronous")
def test_fit_splits_a_batch_again_that_was_prepared_before_memory_ran_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.microbatch.NEVER_OUT_OF_MEMORY", ())

    class Tight(Linears):
        def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            if len(batch.keys) > 2:
                raise torch.OutOfMemoryError("no more")
            return super().mean(batch)

    assert [limit.images for limit in train_with_result(tmp_path / "tight", Tight()).limits] == [2]
    train(tmp_path / "halves", Linears(), accumulate=2)
    assert log(tmp_path / "tight") == log(tmp_path / "halves")


def test_fit_hands_on_what_can_not_be_read_ahead(tmp_path: Path, asynchronous: None) -> None:
    def unreadable(number: int) -> Batch:
        if number == 3:
            raise DataError("s0.tar: cut short")
        return make_batch(number)

    with pytest.raises(DataError, match=r"^s0\.tar: cut short$"):
        train(tmp_path, Linears(), stream=NumberedStream(unreadable))
    assert len((tmp_path / LOG).read_text().splitlines()) == 2, "the third is not read yet"


def test_taken_step_sums_the_losses_of_its_passes() -> None:
    one = PassResult(["a"], {"depth": torch.tensor(0.25), TOTAL: torch.tensor(0.5)})
    other = PassResult(["b"], {TOTAL: torch.tensor(1.0), "masks": torch.tensor([2.0])})
    taken = TakenStep(1, [one, other], torch.tensor(3.0), {})
    assert taken.losses() == {"depth": 0.25, TOTAL: 1.5, "masks": 2.0}
    assert (taken.norm, taken.keys) == (3.0, ["a", "b"])


def test_fit_counts_the_amounts_of_each_microbatch_once_before_it_is_moved(tmp_path: Path) -> None:
    """On a device, counting would wait for it."""
    counted: list[list[str]] = []

    class Counted(Linears):
        def amounts(self, batch: Batch) -> dict[str, float]:
            counted.append(batch.keys)
            return super().amounts(batch)

    train(tmp_path, Counted(), accumulate=2)
    assert counted == [[f"{step}.{2 * half}", f"{step}.{2 * half + 1}"] for step in range(STEPS) for half in range(2)]
