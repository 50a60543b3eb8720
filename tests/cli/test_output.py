"""What the command says where its output, its files or its folder can't be used."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from cli.main import main
from cli.output import Output
from pipeline.errors import Shortage
from pipeline.storage.atomic import name_in_errors


class FullDisk(io.StringIO):
    """A stream to a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_output_writes_to_its_stream() -> None:
    stream = io.StringIO()
    output = Output(stream)
    print("a line", file=output)
    output.flush()
    assert (stream.getvalue(), output.isatty()) == ("a line\n", False)


def test_output_goes_on_in_silence_when_its_reader_has_ended() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        output = Output(stream)
        print("read", file=output, flush=True)
        assert os.read(reader, 100) == b"read\n"
        os.close(reader)
        for _ in range(2):
            print("unread" * 10_000, file=output, flush=True)


def test_output_names_a_full_disk() -> None:
    for write in (lambda: Output(FullDisk()).write("x"), Output(FullDisk()).flush):
        with pytest.raises(Shortage, match="the disk that standard output goes to is full"):
            write()


def test_main_tells_a_full_disk_of_the_output_from_one_of_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", FullDisk())
    with pytest.raises(SystemExit) as end:
        main(["schema"])
    assert end.value.code == 4
    assert "must: the disk that standard output goes to is full" in capsys.readouterr().err


def test_main_tells_errors_of_the_system_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SystemExit) as end:
        main(["init", str(tmp_path / "a"), "--to", str(tmp_path / "file" / "mine.yaml")])
    assert end.value.code != 0
    said = capsys.readouterr().err
    assert said.startswith("must: ")
    assert said.count("\n") == 1


def test_main_says_that_the_current_folder_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    os.rmdir(gone)
    with pytest.raises(SystemExit) as end:
        main(["plan", "mine.yaml"])
    assert end.value.code == 2
    assert "the current folder has been deleted" in capsys.readouterr().err


def test_main_tells_a_shortage_with_its_file_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **options: object) -> None:
        with name_in_errors(tmp_path / "mine.yaml"):
            raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr("ingest.init.write_recipe", fail)
    with pytest.raises(SystemExit) as end:
        main(["init", str(tmp_path)])
    assert end.value.code == 4
    assert capsys.readouterr().err.startswith(
        f"must: {tmp_path / 'mine.yaml'}: File too large. Raise the limit (`ulimit -f`)"
    )
