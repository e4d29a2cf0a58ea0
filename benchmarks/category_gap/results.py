"""The results file: a line a run, appended as it ends, so that a study goes on where it stopped."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from plan import Plan, Row, Run


class Results:
    """The finished runs of a plan, in DIR/results.jsonl. Raises SystemExit for a folder with those of another plan."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._fingerprint = folder / "results.jsonl", plan.fingerprint()
        self.rows: list[Row] = self._read() if self._path.exists() else []
        self._chosen: dict[str, int] = {}

    def _read(self) -> list[Row]:
        text = self._path.read_text()
        whole = text[: text.rfind("\n") + 1]  # a killed process may have left half a line
        if whole != text:
            self._path.write_text(whole)
        try:
            rows = [json.loads(line) for line in whole.splitlines()]
            found = {row["plan"] for row in rows} - {self._fingerprint}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise SystemExit(
                f"{self._path} has a line that is no run of a study ({error!r}); remove the line, or the file"
            ) from error
        if found:
            raise SystemExit(
                f"{self._path} has results of plan {sorted(found)[0]}, this is plan {self._fingerprint}: another "
                "world, budget, set of methods or version of the code; give another --output, or remove the file"
            )
        return rows

    def missing(self, runs: Sequence[Run]) -> list[Run]:
        """Those that are not finished."""
        done = {(row["phase"], row["name"], row["setting"], row["seed"]) for row in self.rows}
        return [run for run in runs if run.key not in done]

    def add(self, run: Run, numbers: dict[str, float], figures: dict[str, np.ndarray]) -> None:
        """A finished run. One with a figure that is not finite has failed: it is kept without figures."""
        plain = {name: np.round(np.asarray(x, np.float64), 7).tolist() for name, x in figures.items()}
        finite = all(np.isfinite(x).all() for x in figures.values())
        row = {
            "plan": self._fingerprint,
            **vars(run),
            "numbers": numbers,
            "figures": plain if finite else None,
        }
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)

    def choose(self, settings: Mapping[str, int]) -> None:
        """From here on show the test runs and ablations of these settings, by name: an earlier choice left others."""
        self._chosen = dict(settings)

    @property
    def shown(self) -> list[Row]:
        """The runs but those of settings that were not chosen in the end."""
        return [
            row
            for row in self.rows
            if row["phase"] == "tune" or row["setting"] == self._chosen.get(row["name"], row["setting"])
        ]

    def of(self, phase: str, name: str) -> list[Row]:
        """The runs of a phase and a name, by seed. Raises FloatingPointError for one that failed."""
        rows = [row for row in self.shown if (row["phase"], row["name"]) == (phase, name)]
        failed = [row["seed"] for row in rows if row["figures"] is None]
        if failed:
            raise FloatingPointError(
                f"{name}: figures of seed {failed[0]} ({phase}) are not finite, so it has no mean"
            )
        return sorted(rows, key=lambda row: row["seed"])
