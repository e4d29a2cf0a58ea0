"""Values are made ahead, in order, by a thread that ends with its generator."""

import contextlib
import threading

import pytest

from jaxalign.training.prefetch import prefetched


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("ahead", [1, 2, 10])
def test_every_value_comes_once_in_order(ahead):
    assert list(prefetched(lambda step: step * step, range(3, 8), ahead=ahead)) == [9, 16, 25, 36, 49]


def test_no_steps_no_values_and_no_thread():
    assert list(prefetched(lambda step: step, ())) == []
    assert threads() == []


def test_values_are_made_ahead_but_no_further_than_asked():
    made, third = [], threading.Event()

    def make(step):
        made.append((step, threading.current_thread().name))
        if len(made) == 3:
            third.set()
        return step

    with contextlib.closing(prefetched(make, range(10), ahead=2)) as values:
        assert next(values) == 0
        assert third.wait(timeout=60)  # two more are made without being asked for
        assert next(values) == 1
    assert [step for step, _ in made][:3] == [0, 1, 2]
    assert len(made) <= 4
    assert all(name.startswith("prefetch") for _, name in made)


def test_error_surfaces_where_its_value_would_have():
    def make(step):
        if step == 2:
            raise ValueError("pair 7 is broken")
        return step

    values = prefetched(make, range(5))
    assert [next(values), next(values)] == [0, 1]
    with pytest.raises(ValueError, match="pair 7 is broken"):
        next(values)
    assert threads() == []


def test_closed_early_it_leaves_no_thread_and_makes_no_more():
    made = []
    values = prefetched(lambda step: made.append(step) or step, range(1000))
    next(values)
    values.close()
    assert threads() == []
    assert len(made) <= 4
