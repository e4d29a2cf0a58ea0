"""A killed reference pass goes on where it was, and ends as one that nothing interrupted."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.settings import RowsConfig
from jaxalign.parallel import MeshConfig, make_mesh
from jaxalign.run.logps_pass import LogpsPass
from jaxalign.run.reference import with_reference
from jaxalign.training import reference
from jaxalign.training.logps import sum_by_response
from jaxalign.training.reference import (
    ReferenceConfig,
    ReferenceMismatchError,
    UnfinishedPass,
    read_reference,
)
from tests.training import toy

INGREDIENTS = {"model": "abc", "with_mi": True}
NUM_PAIRS, BATCHES = 36, 5  # of each of the two passes; the last batch is not full
TABLE = np.random.default_rng(0).normal(size=(toy.V, toy.V)).astype(np.float32)


def bigram_logps(table, _, batch):
    """[B, 2] under a model in which a token depends on the one before it alone."""
    rows = batch.rows
    tokens = rows.tokens.reshape(len(rows.predictor), -1)
    before = jnp.take_along_axis(tokens, rows.predictor, axis=1)
    return sum_by_response(jax.nn.log_softmax(table)[before, rows.target], rows.response, len(batch.weight))


class CountedPass(LogpsPass):
    """A pass that counts the batches it computes, and calls `interrupt` in place of one too many."""

    def __init__(self, allowed=1000, interrupt=None):
        mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
        super().__init__(bigram_logps, mesh, 8, RowsConfig(), show=False)
        self.count, self._allowed, self._interrupt = 0, allowed, interrupt

    def _batches(self, *arguments):
        for index, values in super()._batches(*arguments):
            if self.count == self._allowed:
                self._interrupt()
            self.count += 1
            yield index, values


def attach(folder, base_pass):
    """The toy data with the reference figures that the pass gives, or its file or unfinished file in the folder."""
    dataset = toy.make_dataset(np.eye(3)[np.arange(NUM_PAIRS) % 3])
    config, rows = SimpleNamespace(reference=ReferenceConfig()), np.arange(NUM_PAIRS)
    return with_reference(config, dataset, rows, "train", TABLE, base_pass, INGREDIENTS, cache_dir=folder)


class InterruptionError(Exception):
    """Raised in place of a batch."""


def interrupt():
    raise InterruptionError


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a pass gives that nothing interrupted."""
    base_pass = CountedPass()
    dataset = attach(tmp_path_factory.mktemp("whole"), base_pass)
    assert base_pass.count == 2 * BATCHES
    return dataset


def assert_same(dataset, expected):
    np.testing.assert_array_equal(dataset.reference_logps, expected.reference_logps)
    np.testing.assert_array_equal(dataset.mi, expected.mi)


@pytest.fixture
def at_once(monkeypatch):
    """Write after every batch."""
    monkeypatch.setattr(reference, "SAVE_SECONDS", 0.0)


@pytest.mark.parametrize("done", [1, 4, BATCHES, BATCHES + 2, 2 * BATCHES - 1])
def test_interrupted_pass_computes_only_what_is_missing_and_ends_bit_for_bit_alike(
    done, whole, tmp_path, at_once
):
    with pytest.raises(InterruptionError):
        attach(tmp_path, CountedPass(done, interrupt))
    rest = CountedPass()
    assert_same(attach(tmp_path, rest), whole)
    assert rest.count == 2 * BATCHES - done
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_killed_process_leaves_what_it_had(whole, tmp_path):
    done = BATCHES + 2
    command = [sys.executable, "-m", "tests.training.test_reference_resume", str(tmp_path), str(done)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=False)
    assert process.returncode == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".unfinished"]
    rest = CountedPass()
    assert_same(attach(tmp_path, rest), whole)
    assert rest.count == 2 * BATCHES - done


def test_damaged_unfinished_file_is_left_out_with_a_warning(whole, tmp_path, at_once, caplog):
    with pytest.raises(InterruptionError):
        attach(tmp_path, CountedPass(3, interrupt))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    again = CountedPass()
    assert_same(attach(tmp_path, again), whole)
    assert again.count == 2 * BATCHES
    assert "computed again, as the cached unfinished reference cannot be used" in caplog.text


def test_unfinished_file_of_another_model_is_refused_by_name(tmp_path, at_once):
    with pytest.raises(InterruptionError):
        attach(tmp_path, CountedPass(3, interrupt))
    (path,) = tmp_path.iterdir()
    other = INGREDIENTS | {"model": "xyz"}
    with pytest.raises(ReferenceMismatchError, match="model: file has abc, run has xyz"):
        read_reference(path, other, NUM_PAIRS, names=("logps", "alone"), what="unfinished reference")


def test_finished_file_holds_the_figures_and_no_pass_is_made_again(whole, tmp_path):
    attach(tmp_path, CountedPass())
    (path,) = tmp_path.iterdir()
    np.testing.assert_array_equal(read_reference(path, INGREDIENTS, NUM_PAIRS)["mi"], whole.mi)
    assert_same(attach(tmp_path, CountedPass(0, interrupt)), whole)


def unfinished(path, **options):
    missing = np.full((4, 2), np.nan, np.float32)
    return UnfinishedPass(path, INGREDIENTS, {"logps": missing, "alone": missing}, **options)


def test_unfinished_file_is_written_once_an_interval_and_lacks_what_came_after(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(reference, "time", SimpleNamespace(monotonic=lambda: now[0]))
    work, one = unfinished(tmp_path / "file", write=True), np.ones((1, 2), np.float32)
    work.keep("logps", np.array([2]), one)
    assert not (tmp_path / "file").exists()
    for row, moment in enumerate((reference.SAVE_SECONDS, 1.5 * reference.SAVE_SECONDS)):
        now[0] = moment
        work.keep("alone", np.array([row]), one)
    found = read_reference(tmp_path / "file", INGREDIENTS, 4, names=("logps", "alone"))
    assert np.isfinite(found["logps"][:, 0]).tolist() == [False, False, True, False]
    assert np.isfinite(found["alone"][:, 0]).tolist() == [True, False, False, False]


def test_process_that_is_not_to_write_leaves_the_file_alone(tmp_path, at_once):
    path = tmp_path / "file"
    work = unfinished(path, write=False)
    work.keep("logps", np.array([0]), np.ones((1, 2), np.float32))
    assert not path.exists()
    path.touch()
    work.remove()
    assert path.exists()


if __name__ == "__main__":
    reference.SAVE_SECONDS = 0.0
    attach(Path(sys.argv[1]), CountedPass(int(sys.argv[2]), kill))
