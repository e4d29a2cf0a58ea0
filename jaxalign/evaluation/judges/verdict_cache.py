"""Verdicts on disk, so that none is paid for twice. One SQLite table: safe under threads, processes and a kill."""

import hashlib
import json
import logging
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.evaluation.judges.interface import JudgeError
from jaxalign.evaluation.judges.verdict import Verdict

log = logging.getLogger(__name__)


class VerdictCache:
    """Verdicts by key, in a file, or for its own life in memory. A context manager: it holds the file open."""

    def __init__(self, path: Path | None) -> None:
        """Raises JudgeError for a file that is no cache."""
        self._lock, self._path = threading.Lock(), path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._table = sqlite3.connect(path or ":memory:", timeout=60.0, check_same_thread=False)
            try:
                self._table.execute(
                    "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT)"
                )
                self._table.execute("SELECT key, verdict FROM verdicts LIMIT 1")
            except sqlite3.Error:
                self._table.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise JudgeError(
                f"cache {path} cannot be used ({error}); expected a file of verdicts, or none yet: remove it or name "
                "another"
            ) from error

    def __enter__(self) -> "VerdictCache":
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close()

    def get(self, key: str) -> Verdict | None:
        """The verdict of a key, None where there is none."""
        try:
            with self._lock:
                row = self._table.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._error("read", error) from error
        return None if row is None else self._verdict(row[0])

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict."""
        row = (key, json.dumps(verdict))
        try:
            with self._lock, self._table:
                self._table.execute("INSERT OR REPLACE INTO verdicts (key, verdict) VALUES (?, ?)", row)
        except sqlite3.Error as error:
            raise self._error("written to", error) from error

    def _verdict(self, text: Any) -> Verdict | None:
        """The verdict of a row; a damaged one is none, so it is asked for again and replaced."""
        try:
            harm, unsafe, category = json.loads(text)
            if type(unsafe) is bool and 0.0 <= harm <= 1.0 and isinstance(category, str | None):
                return Verdict(float(harm), unsafe, category)
        except (ValueError, TypeError):
            pass
        log.warning("cache %s: a row that is no verdict is not used: %.80r", self._path, text)
        return None

    def _error(self, what: str, error: sqlite3.Error) -> JudgeError:
        return JudgeError(
            f"cache {self._path} cannot be {what} ({error}); make it whole and writable, or name another file"
        )


def fingerprint(request: Mapping[str, Any]) -> str:
    """A key for all that a verdict depends on."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
