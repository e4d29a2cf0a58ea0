"""A directory appears whole or not at all, and files of others are never touched."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jaxalign.hf.staging import MARKER, ExportError, staged_directory


def _write(directory: Path, text: str, *, overwrite: bool = False) -> None:
    with staged_directory(directory, overwrite=overwrite) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text(text)


def test_finished_directory_appears_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    _write(tmp_path / "new" / "out", "1")
    assert sorted(p.name for p in (tmp_path / "new" / "out").iterdir()) == ["a.txt", MARKER, "sub"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]


def test_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    _write(tmp_path / "out", "1")
    assert (tmp_path / "out" / "a.txt").read_text() == "1"


def test_error_in_the_middle_leaves_no_directory(tmp_path: Path) -> None:
    def interrupted() -> None:
        with staged_directory(tmp_path / "out", overwrite=False) as folder:
            (folder / "half.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_kill_in_the_middle_leaves_no_directory(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        from jaxalign.hf.staging import staged_directory
        with staged_directory(sys.argv[1], overwrite=False) as folder:
            (folder / "half.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "out")]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, check=False)
    assert result.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    _write(tmp_path / "out", "1")
    assert (tmp_path / "out" / "a.txt").read_text() == "1"


def test_own_unchanged_export_is_replaced_only_when_asked(tmp_path: Path) -> None:
    _write(tmp_path / "out", "1")
    with pytest.raises(ExportError, match="holds an export already; give another directory or set overwrite"):
        _write(tmp_path / "out", "2")
    assert (tmp_path / "out" / "a.txt").read_text() == "1"
    _write(tmp_path / "out", "2", overwrite=True)
    assert (tmp_path / "out" / "a.txt").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_foreign_directory_is_refused_even_with_overwrite(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="holds files that no export wrote; give another directory"):
        _write(tmp_path / "out", "1", overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["thesis.txt", "sub/b.txt"])
def test_added_or_edited_files_are_not_deleted(name: str, tmp_path: Path) -> None:
    _write(tmp_path / "out", "1")
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(ExportError, match=f"changed since: {name}; move them away"):
        _write(tmp_path / "out", "2", overwrite=True)
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_files_that_arrive_during_the_export_are_kept(tmp_path: Path) -> None:
    def overtaken() -> None:
        with staged_directory(tmp_path / "out", overwrite=True) as folder:
            (folder / "a.txt").write_text("1")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "thesis.txt").write_text("mine")

    with pytest.raises(ExportError, match="holds files that no export wrote"):
        overtaken()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ExportError, match="out is a file; give a directory"):
        _write(tmp_path / "out", "1", overwrite=True)
