"""The train loop on the toy: what it computes, what it logs and saves, and that it wastes nothing."""

import dataclasses
import json
import os
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxalign.data.loader import PairLoader
from jaxalign.data.sampling import SamplingConfig
from jaxalign.parallel import MeshConfig, batch_sharding, make_mesh, put_global
from jaxalign.training.checkpoint import Checkpointer
from jaxalign.training.log import MetricsLog
from jaxalign.training.loop import LoopParts, LoopSchedule, run_loop, sampling_state
from jaxalign.training.preemption import Preemption
from jaxalign.training.state import TrainState
from jaxalign.training.step_log import DivergedError
from tests.training import toy

NUM_STEPS = toy.NUM_STEPS
SCHEDULE = LoopSchedule(num_steps=NUM_STEPS, save_every=3, evaluate_every=None, max_skipped_in_a_row=2)
MESH = make_mesh(MeshConfig(data=1), jax.devices()[:1])
CLOCK = {"seconds_per_step", "response_tokens_per_second"}


@pytest.fixture(scope="module")
def step_fn():
    return jax.jit(toy.make_step(), donate_argnums=0)


def place(batch):
    return put_global(batch, batch_sharding(MESH))


def start():
    """The first state, placed as the step leaves it."""
    return jax.device_put(toy.make_state(), jax.devices()[0])


class RecordingLog(MetricsLog):
    """The log, which also notes in `events` what it is given."""

    events: list

    def write(self, step, figures):
        self.events.append(("log", step))
        super().write(step, figures)


class RecordingCheckpointer(Checkpointer):
    """The checkpointer, which also notes in `events` what it is given."""

    events: list

    def save(self, state, cursor):
        self.events.append(("save", cursor["step"]))
        super().save(state.inside if isinstance(state, Sealed) else state, cursor)


@dataclasses.dataclass(frozen=True)
class Sealed:
    """A state that nobody can read who does not know of `inside`."""

    inside: TrainState


def train(workdir, step_fn, *, schedule=SCHEDULE, events=None, **parts):
    """Train in a folder, from its newest checkpoint if it has one; the state and whether it got to the end."""
    events = [] if events is None else events
    with RecordingCheckpointer(workdir / "checkpoints", keep=100) as checkpointer:
        state = start()
        if checkpointer.latest_step() is not None:
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
            )
            state, _ = checkpointer.restore(abstract)
        with RecordingLog(workdir, int(state.step)) as log:
            log.events = checkpointer.events = events
            own = LoopParts(
                step_fn=noting_steps(step_fn, events),
                frozen=jax.device_put(toy.make_frozen(), jax.devices()[0]),
                place=place,
                loader=toy.make_loader(),
                category_names=toy.NAMES,
                checkpointer=checkpointer,
                log=log,
                evaluate=None,
            )
            return run_loop(state, dataclasses.replace(own, **parts), schedule, {"seed": 7})


def noting_steps(step_fn, events):
    def noting(state, frozen, batch):
        events.append(("step", sum(name == "step" for name, _ in events) + 1))
        return step_fn(state, frozen, batch)

    return noting


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_clock(workdir):
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines(workdir)]


def saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def assert_identical(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, step_fn):
    """The folder and the state of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    state, finished = train(folder, step_fn)
    assert finished
    return folder, state


def test_loop_computes_what_the_steps_in_order_compute(whole, step_fn):
    state, loader, expected = start(), toy.make_loader(), []
    for step in range(NUM_STEPS):
        state, sums = step_fn(state, toy.make_frozen(), loader.batch(step))
        expected.append(float(sums.loss / sums.pairs))
    assert_identical(whole[1], state)
    assert [line["loss"] for line in lines(whole[0])] == pytest.approx(expected, rel=1e-6)


def test_batches_that_depend_on_the_state_are_made_of_the_state_before_their_step(tmp_path, step_fn):
    loader = toy.make_loader(sampling=SamplingConfig(strategy="margin"), rows=toy.PADDED)
    state, _ = train(tmp_path, step_fn, loader=loader)
    expected = start()
    for step in range(NUM_STEPS):
        batch = loader.batch(step, sampling_state(loader, expected))
        expected, _ = step_fn(expected, toy.make_frozen(), batch)
    assert_identical(state, expected)


def test_every_step_is_logged_once_with_all_figures_of_the_state_after_it(whole):
    logged = lines(whole[0])
    assert [line["step"] for line in logged] == list(range(1, NUM_STEPS + 1))
    margin = whole[1].adaptive["margin"].margin
    assert logged[-1]["adaptive/margin/Violence"] == pytest.approx(float(margin[0]))
    assert logged[-1]["skipped_steps"] == 0.0
    assert {"adaptive/balance/num_seen", "grad_norm", "learning_rate", *CLOCK} <= logged[0].keys()


def test_devices_have_the_next_step_before_one_is_logged_and_saves_wait_for_theirs(tmp_path, step_fn):
    events = []
    train(tmp_path, step_fn, events=events)
    text = " ".join(f"{name}{step}" for name, step in events)
    assert text == (
        "step1 step2 log1 step3 log2 log3 save3 step4 step5 log4 step6 log5 log6 save6 step7 step8 log7 log8 save8"
    )


def test_loop_does_not_look_into_the_state(whole, tmp_path, step_fn):
    def sealed_step(state, frozen, batch):
        new, sums = step_fn(state.inside if isinstance(state, Sealed) else state, frozen, batch)
        return Sealed(new), sums

    # To read a number of it would be to wait for the step that makes it.
    state, _ = train(tmp_path, sealed_step)
    assert_identical(state.inside, whole[1])
    assert without_clock(tmp_path) == without_clock(whole[0])


def compilations(events):
    """Listen for everything that jax traces or compiles; call the result to stop listening."""

    def note(event, duration, **details):
        if event.startswith("/jax/core/compile/"):
            events.append(("compile", event))

    jax.monitoring.register_event_duration_secs_listener(note)
    return lambda: jax.monitoring.unregister_event_duration_listener(note)


def test_nothing_is_compiled_after_the_first_step(tmp_path):
    events = []
    stop = compilations(events)
    try:
        train(tmp_path, jax.jit(toy.make_step(), donate_argnums=0), events=events)
    finally:
        stop()
    second = events.index(("step", 2))
    assert any(name == "compile" for name, _ in events[:second])
    assert [event for event in events[second:] if event[0] == "compile"] == []


@pytest.fixture
def guarded(step_fn):
    """The step, which forbids implicit transfers, on all threads, from its second call to its last."""
    calls = []

    def step(state, frozen, batch):
        calls.append(len(calls))
        jax.config.update("jax_transfer_guard", "disallow" if 1 < len(calls) < NUM_STEPS else "allow")
        return step_fn(state, frozen, batch)

    yield step
    jax.config.update("jax_transfer_guard", "allow")


SAVE_AT_THE_END = dataclasses.replace(SCHEDULE, save_every=NUM_STEPS)


def test_nothing_is_transferred_unasked_in_steady_state(tmp_path, guarded):
    assert train(tmp_path, guarded, schedule=SAVE_AT_THE_END)[1]


def test_transfer_guard_sees_a_batch_that_was_not_placed(tmp_path, guarded):
    with pytest.raises(RuntimeError, match="Disallowed host-to-device transfer"):
        train(tmp_path, guarded, schedule=SAVE_AT_THE_END, place=lambda batch: batch)


def evaluating(states):
    def evaluate(state):
        states.append(int(state.step))
        return {"heldout/accuracy": float(state.step)}

    return evaluate


def test_heldout_figures_stand_in_the_line_of_their_step(tmp_path, step_fn):
    schedule, states = dataclasses.replace(SCHEDULE, evaluate_every=3), []
    train(tmp_path, step_fn, schedule=schedule, evaluate=evaluating(states))
    assert states == [3, 6]
    found = {line["step"]: line["heldout/accuracy"] for line in lines(tmp_path) if "heldout/accuracy" in line}
    assert found == {3: 3.0, 6: 6.0}


def test_seconds_of_steps_are_those_of_the_loop_without_evaluations(tmp_path, step_fn, monkeypatch):
    now = [0.0]

    def monotonic():
        now[0] += 2**-10  # no two moments are the same
        return now[0]

    for module in ("loop", "step_log"):
        monkeypatch.setattr(f"jaxalign.training.{module}.time", SimpleNamespace(monotonic=monotonic))

    def slow_step(state, frozen, batch):
        now[0] += 2.0
        return step_fn(state, frozen, batch)

    def slow_evaluation(state):
        now[0] += 50.0
        return {}

    schedule = dataclasses.replace(SCHEDULE, evaluate_every=4)
    train(tmp_path, slow_step, schedule=schedule, evaluate=slow_evaluation)
    seconds = [line["seconds_per_step"] for line in lines(tmp_path)]
    assert 2.0 * NUM_STEPS <= sum(seconds) <= 2.0 * NUM_STEPS + 0.1
    # A step is known to be finished only once the next one is given to the devices.
    assert max(seconds) <= 4.0 + 0.1
    rates = [line["response_tokens_per_second"] for line in lines(tmp_path)]
    assert rates == [line["response_tokens"] / line["seconds_per_step"] for line in lines(tmp_path)]


class StopAt(Preemption):
    """A stop request that arrives during a given step."""

    step = 0

    def requested(self, step):
        return step == self.step


@pytest.mark.parametrize("step", [1, 4, 6, NUM_STEPS - 1])
def test_stopped_and_resumed_run_is_the_uninterrupted_one(step, whole, tmp_path, step_fn, monkeypatch):
    monkeypatch.setattr("jaxalign.training.loop.Preemption", type("Stop", (StopAt,), {"step": step}))
    state, finished = train(tmp_path, step_fn)
    assert (int(state.step), finished, max(saved(tmp_path))) == (step, False, step)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, step + 1))
    monkeypatch.undo()
    state, finished = train(tmp_path, step_fn)
    assert finished
    assert_identical(state, whole[1])
    assert without_clock(tmp_path) == without_clock(whole[0])


def test_sigterm_stops_after_the_step_under_way(tmp_path, step_fn):
    def signalled(state, frozen, batch):
        if int(state.step) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_fn(state, frozen, batch)

    state, finished = train(tmp_path, signalled)
    assert (int(state.step), finished) == (4, False)
    assert saved(tmp_path) == [3, 4]
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


class BreakingLoader(PairLoader):
    """A loader that cannot read the pairs of step 6, counted from 1."""

    def batch(self, step, state=None):
        if step == 5:
            raise OSError("disk gone")
        return super().batch(step, state)


def test_crashed_and_resumed_run_logs_each_step_once(whole, tmp_path, step_fn):
    loader = toy.make_loader()
    loader.__class__ = BreakingLoader
    with pytest.raises(OSError, match="disk gone"):
        train(tmp_path, step_fn, loader=loader)
    assert saved(tmp_path) == [3]
    assert [line["step"] for line in lines(tmp_path)][:3] == [1, 2, 3]
    state, finished = train(tmp_path, step_fn)
    assert finished
    assert_identical(state, whole[1])
    assert without_clock(tmp_path) == without_clock(whole[0])


def broken_from(step):
    """A loader whose pairs have no reference from a step on, counted from 1; the first category is among them."""
    loader = toy.make_loader(num_pairs=80)
    seen = np.concatenate([loader.indices(i).ravel() for i in range(step - 1)])
    loader.dataset.reference_logps[np.setdiff1d(np.arange(80), seen)] = np.nan
    return loader


def test_divergence_names_the_last_step_and_categories_and_keeps_the_last_good_checkpoint(tmp_path, step_fn):
    schedule = dataclasses.replace(SCHEDULE, save_every=1)
    message = (
        r"2 steps in a row were not finite, the last is step 4; loss not finite in: Violence \(\d pairs\), .*"
        r"grad_norm nan\. Kept: checkpoint 2\. Try a lower optimizer\.learning_rate"
    )
    with pytest.raises(DivergedError, match=message):
        train(tmp_path, step_fn, loader=broken_from(3), schedule=schedule)
    assert saved(tmp_path) == [1, 2]
    logged = lines(tmp_path)
    assert [line["step"] for line in logged] == [1, 2, 3, 4]
    assert [line["loss"] is None for line in logged] == [False, False, True, True]
    assert [line["skipped_steps"] for line in logged] == [0.0, 0.0, 1.0, 2.0]


def test_divergence_between_saves_is_seen_one_step_late_and_named_rightly(tmp_path, step_fn):
    events = []
    schedule = dataclasses.replace(SCHEDULE, save_every=5)
    with pytest.raises(DivergedError, match=r"the last is step 3; .* Kept: checkpoint None"):
        train(tmp_path, step_fn, loader=broken_from(2), schedule=schedule, events=events)
    assert events[-2:] == [("step", 4), ("log", 3)]
    assert saved(tmp_path) == []


def test_no_periodic_checkpoint_is_of_a_step_that_was_not_finite(tmp_path, step_fn):
    loader = toy.make_loader(num_pairs=80)
    loader.dataset.reference_logps[loader.indices(2).ravel()] = np.nan  # step 3 alone
    assert train(tmp_path, step_fn, loader=loader)[1]
    assert saved(tmp_path) == [6, 8]
    assert [line["skipped_steps"] for line in lines(tmp_path)] == [0.0] * 2 + [1.0] * 6


def test_finished_run_does_nothing_more(whole, tmp_path, step_fn):
    events = []
    train(tmp_path, step_fn)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    state, finished = train(tmp_path, step_fn, events=events)
    assert (finished, events) == (True, [])
    assert_identical(state, whole[1])
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
