"""Writing a directory all at once: built beside its destination, then renamed into place.

Only files that are known to come from an earlier export, unchanged, are ever removed.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxalign.errors import JaxalignError

MARKER = "jaxalign_export.json"


class ExportError(JaxalignError, ValueError):
    """An export cannot be written to where it was asked for; nothing was changed there."""


@contextmanager
def staged_directory(directory: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """A directory to fill, which becomes `directory` if the block ends without an error.

    Raises ExportError if `directory` holds anything, unless it is an unchanged export and `overwrite` is set.
    """
    destination = Path(directory).resolve()
    _refuse_foreign(destination, overwrite)
    destination.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        staged = workplace / "new"
        staged.mkdir()
        yield staged
        _write_marker(staged)
        _refuse_foreign(destination, overwrite)  # it may have changed in the meantime
        _swap(staged, destination, workplace / "previous")
    finally:
        shutil.rmtree(workplace)


def _swap(staged: Path, destination: Path, previous: Path) -> None:
    """Put `staged` in the place of `destination`, which is absent, empty, or moves to `previous`."""
    if not destination.exists() or not any(destination.iterdir()):
        staged.rename(destination)
        return
    destination.rename(previous)
    try:
        staged.rename(destination)
    except OSError:
        previous.rename(destination)
        raise


def _refuse_foreign(destination: Path, overwrite: bool) -> None:
    if destination.is_file():
        raise ExportError(f"{destination} is a file; give a directory that does not exist yet")
    if not destination.exists() or not any(destination.iterdir()):
        return
    if not (destination / MARKER).is_file():
        raise ExportError(f"{destination} holds files that no export wrote; give another directory")
    if not overwrite:
        raise ExportError(f"{destination} holds an export already; give another directory or set overwrite")
    foreign = _changed_files(destination)
    if foreign:
        raise ExportError(
            f"{destination} holds files that its export did not write or that changed since: "
            f"{', '.join(foreign)}; move them away first"
        )


def _write_marker(directory: Path) -> None:
    """Record what was written, so that a later export can tell its own files from those of others."""
    digests = {file.relative_to(directory).as_posix(): _sha256(file) for file in _files(directory)}
    (directory / MARKER).write_text(json.dumps({"files": digests}, indent=2, sort_keys=True) + "\n")


def _changed_files(directory: Path) -> list[str]:
    written = json.loads((directory / MARKER).read_text())["files"]
    present = {file.relative_to(directory).as_posix(): file for file in _files(directory)}
    del present[MARKER]
    return sorted(name for name, file in present.items() if written.get(name) != _sha256(file))


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if not path.is_dir()]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
