"""Run the tests that need a GPU, one line of results each, in the time there is; `--tiny` runs them on a CPU.

bash benchmarks/gpu/run.sh correctness
"""

from __future__ import annotations

import time

import pytest
import typer

from benchmarks.gpu.items import SECONDS, ItemResults, SecondsOption, TinyOption
from benchmarks.measure import print_table
from pipeline.errors import PROJECT

TESTS = ("tests/gpu", "tests/test_gpu.py")
TINY_TESTS = ("tests/gpu/test_labels.py", "tests/gpu/test_stages.py")
SKIPPED = "skipped"


class TestRecorder:
    """A plug-in of pytest: keeps each test's outcome, and skips those that passed before or have no time left."""

    __test__ = False

    def __init__(self, results: ItemResults, seconds: float) -> None:
        self.results, self.end = results, time.monotonic() + seconds
        self.names: list[str] = []

    @pytest.hookimpl(trylast=True)  # after those that don't belong to this device were left out
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out tests that passed in an earlier run."""
        self.names = [item.nodeid for item in items]
        items[:] = [item for item in items if item.nodeid not in self.results]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip a test that begins too late."""
        if time.monotonic() > self.end:
            self.results.left.append(item.nodeid)
            pytest.skip("no time left")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what came of a test, unless it was skipped."""
        if report.failed:
            lines = str(report.longrepr).splitlines()
            self.results.errors[report.nodeid] = next((line for line in reversed(lines) if line[:2] == "E "), lines[-1])
        elif report.when == "call" and report.passed:
            self.results.add(report.nodeid, "passed", time.monotonic() - report.duration)


def main(seconds: SecondsOption = SECONDS, tiny: TinyOption = False) -> None:
    """Run, and print a table of the tests."""
    results = ItemResults("correctness", "cpu" if tiny else "cuda", tiny)
    recorder = TestRecorder(results, seconds)
    files = [str(PROJECT / name) for name in (TINY_TESTS if tiny else TESTS)]
    which = "not gpu" if tiny else "gpu"
    code = pytest.main(["-q", "-m", which, "-p", "no:cacheprovider", f"--rootdir={PROJECT}", *files], [recorder])
    print_table([("test", "outcome"), *((name, outcome_of(name, results)) for name in recorder.names)])
    results.close(recorder.names)
    if code:
        raise typer.Exit(1)


def outcome_of(name: str, results: ItemResults) -> str:
    """Return what came of a test."""
    if name in results:
        return str(results[name])
    return "failed" if name in results.errors else SKIPPED


if __name__ == "__main__":
    typer.run(main)
