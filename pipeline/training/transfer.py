"""Copies between host and GPU that neither of them waits for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.training.device import map_tensors


class HostCopy:
    """A copy on the host of data that the device may still be computing.

        copy = HostCopy(outputs)  # returns at once
        ...                       # gives the device more work
        copy.read()               # waits for this copy, and not for the work given since

    Tensors of the CPU are not copied. It may be read in another thread.
    """

    def __init__(self, data: Any) -> None:
        self._copied: torch.cuda.Event | None = None
        self._data = map_tensors(data, self._start)
        if self._copied:
            self._copied.record()

    def _start(self, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return tensor
        self._copied = self._copied or torch.cuda.Event(blocking=True)  # who waits for it sleeps
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    def read(self) -> Any:
        """Return the data, with its tensors on the host."""
        if self._copied:
            self._copied.synchronize()
        return self._data


class DeviceCopier:
    """Copies data to this process's CUDA device on a stream of its own, beside what the device computes."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def copy(self, data: Any) -> tuple[Any, torch.cuda.Event | None]:
        """Start to copy the tensors of the data, from any thread; return it with the event of the copy's end.

        If the device's memory runs out, the data is as it was, and there is no event.
        """
        try:
            torch.cuda.set_device(self.stream.device)  # the thread's: else leaving the stream would wake device 0
            with torch.cuda.stream(self.stream):
                return map_tensors(data, self._start), self.stream.record_event()
        except torch.OutOfMemoryError:
            return data, None

    def _start(self, tensor: Tensor) -> Tensor:
        pinned = tensor if tensor.is_cuda else tensor.pin_memory()
        return pinned.to(self.stream.device, non_blocking=True)

    def receive(self, data: Any, copied: torch.cuda.Event) -> None:
        """Let what the device is given from now on wait for the copy, and keep its memory until all that is done."""
        consumer = torch.cuda.current_stream()
        consumer.wait_event(copied)

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(consumer)
            return tensor

        map_tensors(data, keep)
