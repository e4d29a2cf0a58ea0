"""Rows out of local files (jsonl, json, csv, parquet) and of named data sets; not what their fields mean.

A row that cannot be decoded is yielded as a DataError, so that the caller may skip it. A file that cannot be
read at all is raised, whatever `on_error` says: there is no row to skip.
"""

import csv
import glob
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxalign.data.records import OR_SKIP, Record, shown
from jaxalign.data.schema import DataError
from jaxalign.data.settings import SourceConfig

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")


def read_records(source: SourceConfig) -> Iterator[Record | DataError]:
    """The rows of all files of a source, by sorted file name. Raises DataError for whole files."""
    if source.path is None:
        yield from _read_named(source)
        return
    for file in find_files(source.path):
        num_rows = 0
        for record in _read_file(file):
            num_rows += 1
            yield record
        if num_rows == 0:
            raise _file_error(
                "empty file", file, "no rows", "at least one row", "fill the file or take it out"
            )


def find_files(path: str) -> list[Path]:
    """The files that a path, folder or glob stands for, sorted. Raises DataError if there are none."""
    given = Path(path).expanduser()
    kinds = ", ".join(SUFFIXES)
    if given.is_file():
        if not given.name.endswith(SUFFIXES):
            raise _file_error(
                "unknown file type", given, given.name, f"one of {kinds}", "convert or rename the file"
            )
        return [given]
    found = given.iterdir() if given.is_dir() else map(Path, glob.glob(str(given)))
    files = sorted(file for file in found if file.is_file() and file.name.endswith(SUFFIXES))
    if not files:
        what = "a folder without such files" if given.is_dir() else "no such file"
        remedy = f"check the path (relative to {Path.cwd()})"
        raise _file_error("no file", given, what, f"a file, folder or glob of {kinds}", remedy)
    return files


def _file_error(reason: str, file: Path, got: str, expected: str, remedy: str) -> DataError:
    return DataError(reason, origin=str(file), got=got, expected=expected, remedy=remedy)


def _read_file(file: Path) -> Iterator[Record | DataError]:
    if file.suffix == ".parquet":
        yield from _read_parquet(file)
        return
    content = _content(file)
    kind = file.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "csv":
        yield from _read_csv(file, content)
    elif kind == "json" and content.lstrip().startswith(b"["):
        yield from _read_json_array(file, content)
    else:  # .json files of data sets often hold lines
        yield from _read_json_lines(file, content)


def _content(file: Path) -> bytes:
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise _file_error(
            "unreadable file", file, str(error), "a whole, readable file", "fetch the file again"
        ) from error
    return raw.removeprefix(b"\xef\xbb\xbf")  # the mark that some editors put in front of UTF-8


def _not_utf8(origin: str, error: UnicodeDecodeError, alternative: str = "") -> DataError:
    got = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
    remedy = f"convert the file, for example with iconv -t UTF-8{alternative}"
    return DataError("not UTF-8", origin=origin, got=got, expected="text in UTF-8", remedy=remedy)


def _read_json_lines(file: Path, content: bytes) -> Iterator[Record | DataError]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        origin = f"{file}:{number}"
        try:
            yield _record(origin, json.loads(line.decode("utf-8")))
        except UnicodeDecodeError as error:
            yield _not_utf8(origin, error, OR_SKIP)
        except (ValueError, RecursionError) as error:
            got = f"{_json_problem(error)} of {shown(line.decode('utf-8'))}"
            remedy = f"correct the line{OR_SKIP}"
            yield DataError("broken JSON", origin=origin, got=got, expected="one JSON object", remedy=remedy)


def _read_json_array(file: Path, content: bytes) -> Iterator[Record | DataError]:
    try:
        rows = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _not_utf8(str(file), error) from error
    except (ValueError, RecursionError) as error:
        origin = f"{file}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else str(file)
        message = _json_problem(error)
        remedy = "correct the file, or write one object a line as .jsonl"
        raise DataError(
            "broken JSON", origin=origin, got=message, expected="a JSON array", remedy=remedy
        ) from error
    for number, row in enumerate(rows, start=1):
        yield _record(f"{file}:{number}", row)


def _json_problem(error: ValueError | RecursionError) -> str:
    """What the parser says; beside broken syntax it refuses integers of thousands of digits and deep nesting."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "too deep nesting" if isinstance(error, RecursionError) else str(error).partition(";")[0]


def _record(origin: str, row: Any) -> Record | DataError:
    if isinstance(row, dict):
        return Record(origin, row)
    remedy = f"write each row as an object with named fields{OR_SKIP}"
    return DataError("wrong type", origin=origin, got=shown(row), expected="a JSON object", remedy=remedy)


def _read_csv(file: Path, content: bytes) -> Iterator[Record | DataError]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(str(file), error) from error
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # no cell is longer than its file
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    _check_header(file, reader)
    while True:
        first_line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _broken_csv(file, reader, error) from error
        origin = f"{file}:{max(first_line, 2)}"  # line 1 is the header
        if None in row or None in row.values():
            remedy = f"quote texts that hold commas or line breaks{OR_SKIP}"
            expected = f"the {len(reader.fieldnames or ())} columns of the header"
            yield DataError(
                "broken CSV", origin=origin, got="another number", expected=expected, remedy=remedy
            )
        else:  # an empty cell is how csv says null
            yield Record(origin, {key: value or None for key, value in row.items()})


def _check_header(file: Path, reader: "csv.DictReader[str]") -> None:
    try:
        names = reader.fieldnames or ()
    except csv.Error as error:
        raise _broken_csv(file, reader, error) from error
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        got, expected = f"columns named alike: {twice}", "a header that names each column once"
        raise _file_error("broken CSV", file, got, expected, "rename or remove all but one of them")


def _broken_csv(file: Path, reader: "csv.DictReader[str]", error: csv.Error) -> DataError:
    message = f"{error} near line {reader.line_num}"
    return _file_error("broken CSV", file, message, "comma-separated values", "correct the file")


def _read_parquet(file: Path) -> Iterator[Record]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.ParquetFile(file)
        rows = (row for batch in table.iter_batches(batch_size=1024) for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield Record(f"{file}:{number}", row)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _file_error(
            "unreadable file", file, str(error), "a whole parquet file", "fetch the file again"
        ) from error


def _read_named(source: SourceConfig) -> Iterator[Record]:
    import datasets

    split = source.split or "train"
    label = f"{source.name}[{split}]"
    try:
        rows = datasets.load_dataset(
            source.name, source.subset, data_dir=source.data_dir, split=split, revision=source.revision
        )
    except (OSError, ValueError) as error:
        remedy = "check name, subset, data_dir, split and revision, or give local files as `path`"
        expected = "a data set that datasets.load_dataset can load"
        raise DataError(
            "no data set", origin=label, got=str(error), expected=expected, remedy=remedy
        ) from error
    for number, row in enumerate(rows, start=1):
        yield Record(f"{label}:{number}", row)
