"""Files are written whole or not at all, with the permissions of a plain one; messages fit on a line."""

import os
import stat
from pathlib import Path

import pytest

from batchnorm.errors import ArgumentError
from batchnorm.outputs import check_file, told, whole, write_whole, written

posix = pytest.mark.skipif(os.name != "posix", reason="permissions, links and pipes as POSIX has them")


@posix
def test_permissions_are_those_of_a_plain_file_and_stay_those_of_an_old_one(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with whole(tmp_path / "new") as draft:
        draft.unlink()
        draft.touch(0o600)  # as some libraries write
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "old").touch()
    (tmp_path / "old").chmod(0o640)
    write_whole(tmp_path / "old", "new")
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o640


def write_half(path: Path, error: BaseException) -> None:
    with whole(path) as draft:
        draft.write_text("half")
        raise error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(0)])
def test_what_fails_leaves_the_old_file_and_no_draft(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "old.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        write_half(path, error)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"old.txt": "old"}


def test_files_that_belong_together_come_together(tmp_path: Path) -> None:
    with whole(tmp_path / "x.onnx") as draft:
        draft.write_text("program")
        draft.with_name("x.onnx.data").write_text("weights")
        assert list(tmp_path.iterdir()) == [draft.parent]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.onnx", "x.onnx.data"]


@posix
def test_a_link_stays_one_and_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    write_whole(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "text"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArgumentError, match="must be a file, got a pipe or a device"):
        check_file("--out", tmp_path / "pipe")


def test_names_as_long_as_names_may_be_are_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 120 + ".txt")
    write_whole(path, "text")
    assert path.read_text() == "text"


def test_what_cannot_be_written_names_file_reason_and_option(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as caught, written("--out", tmp_path / "x.txt"):
        raise OSError(28, "No space left on device")
    assert str(caught.value) == f"{tmp_path}/x.txt cannot be written: No space left on device; name another file, --out"


def test_an_exception_is_told_without_the_traceback_of_another_process() -> None:
    error = RuntimeError("Caught ValueError in worker 0.\nTraceback (most recent call last):\n  File x\nValueError: no")
    assert told(error).startswith("RuntimeError: Caught ValueError in worker 0. ValueError: no")
    silent = type("Silent", (Exception,), {"__str__": lambda self: 1 / 0})()
    assert told(silent) == "Silent"
