"""Checkpoints of the whole state. The only module that knows Orbax."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from pydantic import Field

from jaxalign.errors import JaxalignError
from jaxalign.settings import Settings
from jaxalign.training.state import TrainState

log = logging.getLogger(__name__)


class CheckpointConfig(Settings):
    """When to save, and how many to keep."""

    every_steps: int = Field(default=100, ge=1, description="the last step is always saved")
    keep: int = Field(default=3, ge=1, description="the newest so many are kept")


class CheckpointError(JaxalignError, RuntimeError):
    """A checkpoint that cannot be read as this run's state."""


class Checkpointer:
    """Asynchronous, atomic saves of (state, cursor) by step. Use as a context: leaving it waits for the last save.

    A save is written beside its final name and renamed when complete, so a killed process leaves whole
    checkpoints only.
    """

    def __init__(self, directory: Path, keep: int | None) -> None:
        """Open or make `directory` for a run that keeps so many; `keep=None` only reads, beside a run at work."""
        if keep is None and not directory.is_dir():
            raise CheckpointError(f"no checkpoints: {directory} does not exist; train first")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=keep is not None,  # a reader must not touch a save in progress
            read_only=keep is None,
            create=keep is not None,
            # Two of them may save at the same time: processes must not take one's barrier for the other's.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=directory.name
            ),
        )
        self._directory = directory.resolve()
        if keep is not None and jax.process_index() == 0:
            self._remove_remains()
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()
        self._manager.close()

    def wait(self) -> None:
        """Wait until the save under way is complete."""
        self._manager.wait_until_finished()

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None without one."""
        return max(self.steps(), default=None)

    def _remove_remains(self) -> None:
        # A process killed while it removed an old checkpoint leaves a part of it under the final name.
        for path in self._directory.glob("*/"):
            if path.name.isdigit() and not self._metadata_file(int(path.name)).exists():
                log.warning("removing the remains of checkpoint %s", path)
                shutil.rmtree(path)

    def delete(self, step: int) -> None:
        """Remove a checkpoint."""
        self._manager.delete(step)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in order."""
        complete = (step for step in self._manager.all_steps() if self._metadata_file(step).exists())
        return sorted(complete)

    def _metadata_file(self, step: int) -> Path:
        return self._directory / str(step) / "state" / "_METADATA"

    def save(self, state: TrainState, cursor: dict[str, Any]) -> None:
        """Start saving the state; errors of the save before surface here. Saving a step twice does nothing."""
        self._manager.check_for_errors()
        step = int(jax.device_get(state.step))
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), cursor=ocp.args.JsonSave(cursor))
        self._manager.save(step, args=items, force=True)

    def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """State and cursor; `abstract` gives shapes, dtypes and shardings, which may be those of another mesh.

        Raises CheckpointError where there is none or its leaves do not fit.
        """
        step = self._existing(step)
        self._check_fits(abstract, step, whole=True)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), cursor=ocp.args.JsonRestore())
        restored = self._read(step, items)
        return restored["state"], restored["cursor"]

    def restore_parts(self, parts: dict[str, Any], step: int | None = None) -> tuple[dict[str, Any], int]:
        """Some fields of the state by name, such as {"params": abstract}, and the step that they are of."""
        step = self._existing(step)
        self._check_fits(parts, step, whole=False)
        arguments = jax.tree.map(lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, dtype=x.dtype), parts)
        item = ocp.args.PyTreeRestore(item=parts, restore_args=arguments, partial_restore=True)
        return self._read(step, ocp.args.Composite(state=item))["state"], step

    def _read(self, step: int, items: Any) -> Any:
        with self._readable(step):
            return self._manager.restore(step, args=items)

    @contextlib.contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            others = [other for other in self.steps() if other != step]
            remedy = f"move it away to go on from {others[-1]}" if others else "there is no other"
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} is damaged ({type(error).__name__}); {remedy}"
            ) from error

    def _existing(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"no complete checkpoint in {self._directory}; train first")
        if step is not None and step not in steps:
            raise CheckpointError(f"no checkpoint of step {step} in {self._directory}; there are {steps}")
        return steps[-1] if step is None else step

    def _check_fits(self, wanted: Any, step: int, *, whole: bool) -> None:
        """Compare leaves by name before anything is read; with `whole`, the checkpoint must hold no others."""
        # Orbax would cast dtypes silently, and names no leaf where a shape differs.
        with self._readable(step):
            metadata = ocp.PyTreeCheckpointHandler().metadata(self._directory / str(step) / "state")
        stored = {leaf.name: _describe(leaf) for leaf in jax.tree.leaves(metadata.tree)}
        expected = {
            jax.tree_util.keystr(path, simple=True, separator="."): _describe(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(wanted)
        }
        names = sorted(stored.keys() | expected.keys() if whole else expected.keys())
        wrong = [
            f"{name}: checkpoint has {stored.get(name, 'nothing')}, this run {expected.get(name, 'nothing')}"
            for name in names
            if stored.get(name) != expected.get(name)
        ]
        if wrong:
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} is not the state that this configuration makes; use the "
                "configuration that it was trained with, or another workdir\n  " + "\n  ".join(wrong)
            )


def _describe(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
