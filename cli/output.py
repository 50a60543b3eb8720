"""Standard output whose errors are told from those of files: it may go to a full disk, or its reader may have ended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, TextIO

from pipeline.errors import Shortage
from pipeline.storage.shortage import shortage_of


class Output:
    """A text stream that raises Shortage if the disk that it goes to is full; all else is as in the `stream`.

    If whoever read it has ended, as `head` does, it takes the rest in silence: a run goes on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, as a file does."""
        with _explain_full_disk(), self._without_reader():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with _explain_full_disk(), self._without_reader():
            self._stream.flush()

    @contextlib.contextmanager
    def _without_reader(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())  # for what is buffered as well


@contextlib.contextmanager
def _explain_full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if shortage_of(error) != "space":
            raise
        raise Shortage("the disk that standard output goes to is full: free some of it, or write elsewhere.") from error
