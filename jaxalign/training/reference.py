"""The reference pass: log-probs and mutual information of every response under the frozen reference, kept on disk.

The file is found by a hash of everything that its figures depend on, so a stale one is never used. Other passes over
the training pairs keep their log-probs in files of the same form.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxalign.data.dataset import TokenizedDataset
from jaxalign.errors import JaxalignError
from jaxalign.files import replacing
from jaxalign.settings import LaxPath, Settings

PASSES = {"logps": "reference log-probs", "alone": "reference log-probs without prompt"}
"""The passes over a data set by name, with what they are called in messages. The second is made for MI alone."""

BranchLogpsFn = Callable[[TokenizedDataset, str], np.ndarray]
"""(dataset, name of the pass) -> [n, 2] float32 summed response log-probs under the reference."""

SAVE_SECONDS = 30.0
"""So much work is lost at most if a pass is killed."""


class ReferenceConfig(Settings):
    """Where the reference log-probs come from."""

    mode: Literal["precomputed", "adapter_base", "online", "none"] = Field(
        default="precomputed",
        description="precomputed: one pass, cached; adapter_base: the model without its adapter, each step; "
        "online: a frozen copy of the initial model, each step; none: for losses that read no reference; rewards are "
        "then beta times the log-prob itself while training, held-out figures still compare with the initial model",
    )
    cache_dir: LaxPath | None = Field(default=None, description="default: WORKDIR/reference")
    file: LaxPath | None = Field(default=None, description="use this file of an earlier pass or fail")

    @model_validator(mode="after")
    def _check(self) -> "ReferenceConfig":
        if self.file and self.cache_dir:
            raise ValueError(
                "give reference.file or reference.cache_dir, not both: a given file is the cache"
            )
        return self


class ReferenceMismatchError(JaxalignError, ValueError):
    """A reference file that is damaged, or belongs to another model, tokenizer, data set or setting."""


class NonFiniteReferenceError(JaxalignError, ValueError):
    """The reference model gives log-probs that are not finite."""


def reference_key(ingredients: dict[str, Any]) -> str:
    """Hash of everything that the reference log-probs depend on."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def mutual_information(logps: np.ndarray, logps_alone: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """I(x; y) = [log p(y|x) - log p(y)] / |y| in nats per token; all [n, 2]."""
    return ((logps.astype(np.float64) - logps_alone) / lengths).astype(np.float32)


def compute_reference(
    dataset: TokenizedDataset, branch_logps: BranchLogpsFn, *, with_mi: bool
) -> dict[str, np.ndarray]:
    """`logps` and `mi`, both [n, 2] float32: one pass with the prompts and, for MI, one after an empty prompt.

    Without `with_mi`, MI is 0 everywhere: nothing reads it then. Raises NonFiniteReferenceError.
    """
    passes = {"logps": branch_logps(dataset, "logps")}
    if with_mi:
        passes["alone"] = branch_logps(dataset.without_prompts(), "alone")
    for name, values in passes.items():
        rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if rows.size:
            raise NonFiniteReferenceError(
                f"{PASSES[name]} are not finite for {rows.size} pairs, first at {dataset.origins[rows[0]]}; check the "
                "model weights, or use model.dtype: float32"
            )
    logps = passes["logps"]
    if not with_mi:
        return {"logps": logps, "mi": np.zeros_like(logps)}
    return {"logps": logps, "mi": mutual_information(logps, passes["alone"], dataset.lengths[:, 1:])}


class UnfinishedPass:
    """What a reference pass has so far, in a file of its own, so that the next start goes on from there.

    `logps` has [n, 2] for each pass by name, NaN where a pair is missing. Only a process that is to `write` does.
    """

    def __init__(
        self, path: Path, ingredients: dict[str, Any], logps: dict[str, np.ndarray], *, write: bool
    ) -> None:
        self.logps = {
            name: np.array(array) for name, array in logps.items()
        }  # of our own: they are written to
        self._path, self._ingredients, self._write = path, ingredients, write
        self._written = time.monotonic()

    def keep(self, name: str, rows: np.ndarray, logps: np.ndarray) -> None:
        """Take the log-probs [m, 2] of some rows [m] of a pass; write the file if the last time is long enough ago."""
        self.logps[name][rows] = logps
        if self._write and time.monotonic() - self._written >= SAVE_SECONDS:
            write_reference(self._path, self.logps, self._ingredients)
            self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the file: the pass is finished, and kept elsewhere."""
        if self._write:
            self._path.unlink(missing_ok=True)


def read_reference(
    path: Path,
    ingredients: dict[str, Any],
    num_pairs: int,
    *,
    names: Sequence[str] = ("logps", "mi"),
    what: str = "reference",
    remedy: str = "delete it",
) -> dict[str, np.ndarray]:
    """The arrays `names` of an earlier pass, each [num_pairs, 2]; messages call it `what` and advise the `remedy`.

    Raises ReferenceMismatchError for a damaged file, else naming each ingredient that differs; FileNotFoundError.
    """
    remedy = f"{remedy} to compute the {what} again"
    try:
        with safe_open(path, framework="numpy") as file:
            found = json.loads((file.metadata() or {}).get("ingredients", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (FileNotFoundError, PermissionError):
        raise
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ReferenceMismatchError(f"{path} is not a whole {what} file ({error}); {remedy}") from error
    differing = sorted(
        name for name in found.keys() | ingredients.keys() if found.get(name) != ingredients.get(name)
    )
    if differing:
        lines = [f"{name}: file has {found.get(name)}, run has {ingredients.get(name)}" for name in differing]
        raise ReferenceMismatchError(
            f"{path} holds the {what} of something else; {remedy}\n  " + "\n  ".join(lines)
        )
    shapes = {name: array.shape for name, array in arrays.items()}
    if shapes != dict.fromkeys(names, (num_pairs, 2)):
        expected = f"{' and '.join(names)} of shape ({num_pairs}, 2)"
        raise ReferenceMismatchError(f"{path} holds {shapes}, expected {expected}; {remedy}")
    return arrays


def write_reference(path: Path, arrays: dict[str, np.ndarray], ingredients: dict[str, Any]) -> None:
    """Write atomically: a killed process leaves no half file under the final name."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata={"ingredients": json.dumps(ingredients, sort_keys=True)})
