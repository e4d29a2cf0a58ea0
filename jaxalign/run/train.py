"""`jaxalign train`: start or resume a run in its workdir, and leave figures, checkpoints and a summary there."""

import contextlib
import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.config import Config, ConfigError, dump_config
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.evaluation.heldout_pairs import HeldoutPairs, heldout_pairs
from jaxalign.evaluation.preference import PreferenceReport, preference_report
from jaxalign.files import write_json, write_whole
from jaxalign.parallel import is_main_process
from jaxalign.run.interview import check_interviews
from jaxalign.run.load import BEST
from jaxalign.run.manifest import check_same, describe_config, make_manifest, with_resumption
from jaxalign.run.pair_files import (
    HELDOUT_PAIRS,
    MUTUAL_INFORMATION,
    write_heldout_pairs,
    write_mutual_information,
)
from jaxalign.run.probe import Probe, make_probe
from jaxalign.run.program import abstract_batch
from jaxalign.run.selection import Selector, make_selector
from jaxalign.run.setup import Run, prepare
from jaxalign.run.start import check_start
from jaxalign.run.workdir import locked, run_to_resume
from jaxalign.training.checkpoint import Checkpointer
from jaxalign.training.log import MetricsLog
from jaxalign.training.loop import LoopParts, LoopSchedule, run_loop
from jaxalign.training.preemption import stoppable
from jaxalign.training.state import TrainState
from jaxalign.training.step import StepFn
from jaxalign.training.trackers import check_trackers, open_trackers

log = logging.getLogger(__name__)

FINISHED = "finished.json"
"""A file in the workdir that tells scripts that the run is at its last step, with its checkpoint and figures."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Where a run ended. The reports are None without held-out data, `after` also if the run was stopped.

    `best_step` is that of the state kept in RUN/best, None where no state was eligible; `selected` tells whether there
    was a selection at all.
    """

    step: int
    finished: bool
    before: PreferenceReport | None
    after: PreferenceReport | None
    best_step: int | None = None
    selected: bool = False


@dataclasses.dataclass
class HeldoutReports:
    """Figures of the held-out pairs of a run; the newest are kept, as the last step may ask for them twice.

    `pairs` are those of the newest figures, one by one.
    """

    run: Run
    pairs: HeldoutPairs | None = None
    _newest: PreferenceReport | None = None

    def of(self, state: TrainState) -> PreferenceReport | None:
        """Figures at a state, None without held-out pairs."""
        heldout, step = self.run.data.heldout, int(state.step)
        if heldout is None:
            return None
        if self._newest is None or self._newest.step != step:
            logps = self.run.heldout_logps(state.params)
            self._newest = _compare(self.run, heldout, logps, step)
            beta = self.run.config.loss.reward_beta
            self.pairs = heldout_pairs(logps, _reference_of(heldout), heldout, beta=beta)
        return self._newest


def train(config: Config, workdir: Path, devices: list[jax.Device] | None = None) -> TrainResult:
    """Train to the last step, from the newest checkpoint in `workdir` if there is one, on all devices unless given."""
    old = run_to_resume(config, workdir)
    check_trackers(config.logging)
    check_interviews(config)
    workdir = workdir.resolve()
    lock = locked(workdir) if is_main_process() else contextlib.nullcontext()
    keep = config.checkpoint.keep
    with (
        lock,
        stoppable(),
        Checkpointer(workdir / "checkpoints", keep) as checkpointer,
        contextlib.ExitStack() as closing,
    ):
        if old is None and is_main_process():  # left by a run that was killed before its first checkpoint
            shutil.rmtree(workdir / BEST, ignore_errors=True)
        run = prepare(config, workdir, devices, resuming=checkpointer.latest_step() is not None)
        probe = make_probe(run)
        selector = make_selector(run, workdir, checkpointer, None if probe is None else probe.interview)
        if selector is not None:
            closing.enter_context(selector)
        manifest = make_manifest(config, run.fingerprints)
        if old is not None:
            check_same("fingerprint of ", old["fingerprints"], run.fingerprints, workdir)
            manifest = with_resumption(old, manifest)
        if is_main_process():
            write_json(workdir / "manifest.json", manifest)
            (workdir / FINISHED).unlink(missing_ok=True)
            write_whole(workdir / "config.yaml", dump_config(config))
        state = _start(run, checkpointer, selector)
        run.times.done("check the start" if run.new_state is not None else "restore the checkpoint")
        before = _report_before(run, state, workdir)
        heldout = HeldoutReports(run)
        state, finished = _run_loop(run, state, checkpointer, workdir, heldout, probe, selector)
        step = int(state.step)
        after = heldout.of(state) if finished else None
        if finished and is_main_process():
            if after is not None and heldout.pairs is not None:
                write_json(workdir / "evaluation" / "after.json", after.as_dict())
                write_heldout_pairs(workdir / "evaluation" / HELDOUT_PAIRS, heldout.pairs)
            write_mutual_information(run, state, workdir / "evaluation" / MUTUAL_INFORMATION)
    best_step = None if selector is None else selector.record.best_step
    if finished and is_main_process():  # here the last checkpoint is complete
        best = {} if selector is None else {"best_step": best_step}
        write_json(workdir / FINISHED, {"step": step, **best})
    return TrainResult(step, finished, before, after, best_step, selected=selector is not None)


def _cursor(run: Run) -> dict[str, Any]:
    """What the loader needs besides the step: it is a pure function of both."""
    return {"seed": run.config.train.seed, "data": run.fingerprints["data train"]}


def _start(run: Run, checkpointer: Checkpointer, selector: Selector | None) -> TrainState:
    if run.new_state is not None:
        state = run.new_state()
        check_start(run, state)
        return state
    state, cursor = checkpointer.restore(run.program.abstract_state)
    if selector is not None:
        selector.restore(cursor.pop("selection"))
    expected = {**_cursor(run), "step": int(state.step)}
    if cursor != expected:
        raise ConfigError(f"the checkpoint's place in the data is {cursor}, this run's is {expected}")
    log.info("resuming at step %d of %d", state.step, run.num_steps)
    return state


def _run_loop(
    run: Run,
    state: TrainState,
    checkpointer: Checkpointer,
    workdir: Path,
    heldout: HeldoutReports,
    probe: Probe | None,
    selector: Selector | None,
) -> tuple[TrainState, bool]:
    config = run.config
    schedule = LoopSchedule(
        num_steps=run.num_steps,
        save_every=config.checkpoint.every_steps,
        evaluate_every=config.evaluation.every_steps,
        max_skipped_in_a_row=config.train.max_skipped_in_a_row,
        probe_every=None if config.adaptive.probe is None else config.adaptive.probe.every_steps,
        select_every=None if config.selection is None else config.selection.every_steps,
    )

    def evaluate(current: TrainState) -> dict[str, float | None]:
        report = heldout.of(current)
        return {} if report is None else report.figures()

    at_end = int(state.step) == run.num_steps or (selector is not None and selector.stopped)
    step_fn = run.program.step if at_end else _compiled_step(run)
    run.times.done("compile the step")
    log.info("start: %s", run.times.summary())

    def loop(metrics: MetricsLog | None) -> tuple[TrainState, bool]:
        parts = LoopParts(
            step_fn=step_fn,
            frozen=run.frozen,
            place=run.place,
            loader=run.loader,
            category_names=run.data.train.category_names,
            checkpointer=checkpointer,
            log=metrics,
            evaluate=evaluate,
            probe=probe,
            selection=selector,
        )
        return run_loop(state, parts, schedule, _cursor(run))

    if not is_main_process():
        return loop(None)
    first = int(state.step)
    trackers = open_trackers(config.logging, workdir, first, describe_config(config))
    with MetricsLog(workdir, first, trackers) as metrics:
        return loop(metrics)


def _compiled_step(run: Run) -> StepFn:
    """The step for the batches of this run; compiled here, so that the first step takes as long as any other."""
    batch = abstract_batch(run.config, run.loader.shape, run.loader.alone_shape, run.program.mesh)
    return run.program.lower(batch).compile()


def _compare(run: Run, heldout: TokenizedDataset, policy: np.ndarray, step: int) -> PreferenceReport:
    threshold = run.config.adaptive.violation.threshold
    reference = _reference_of(heldout)
    return preference_report(
        policy, reference, heldout, beta=run.config.loss.reward_beta, threshold=threshold, step=step
    )


def _reference_of(heldout: TokenizedDataset) -> np.ndarray:
    assert heldout.reference_logps is not None, "the reference pass goes over held-out pairs in every mode"
    return heldout.reference_logps


def _report_before(run: Run, state: TrainState, workdir: Path) -> PreferenceReport | None:
    """Held-out figures at step 0; a resumed run reads what its start wrote.

    The policy is still the reference, as `check_start` has seen, so the reference's log-probs serve for both.
    """
    if int(state.step) > 0:
        return read_report(workdir, "before") if is_main_process() else None
    heldout = run.data.heldout
    if heldout is None:
        return None
    report = _compare(run, heldout, _reference_of(heldout), step=0)
    if is_main_process():
        write_json(workdir / "evaluation" / "before.json", report.as_dict())
    return report


def read_report(workdir: Path, name: str) -> PreferenceReport | None:
    """The report `before` or `after` of a run, None where it was not made or cannot be read."""
    path = workdir / "evaluation" / f"{name}.json"
    if not path.exists():
        return None
    try:
        return PreferenceReport(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        log.warning("%s is damaged and left out: %s", path, error)
        return None
