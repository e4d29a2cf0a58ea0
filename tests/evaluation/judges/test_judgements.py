"""What is no judgement is refused, and which turns of a conversation judges see."""

import numpy as np
import pytest

from jaxalign.data.schema import Message
from jaxalign.evaluation.judges.interface import JudgeError, Judgements, dialogue, from_harm

YES, NO = np.array([True]), np.array([False])


@pytest.mark.parametrize(
    ("harm", "safe", "judged", "error"),
    [
        ([np.nan], YES, NO, "harm=nan, safe=True, judged=False"),
        ([np.nan], NO, YES, "expected a harm in"),
        ([0.2], NO, NO, "else NaN and not safe"),
        ([1.5], NO, YES, "harm=1.5"),
        ([-0.1], YES, YES, "harm=-0.1"),
        ([0.5], np.array([1]), YES, "safe is int64"),
        ([0.5, 0.5], NO, YES, r"safe is bool \(1,\), expected a bool array of one value per answer"),
    ],
)
def test_contradictions_are_refused(harm, safe, judged, error):
    with pytest.raises(JudgeError, match=error):
        Judgements(np.array(harm), safe, judged)


def test_refusals_and_categories_are_one_for_each_answer():
    with pytest.raises(JudgeError, match="refused is bool"):
        from_harm([0.1, 0.2], refused=YES)
    with pytest.raises(JudgeError, match="1 categories for 2 answers"):
        from_harm([0.1, 0.2], categories=("Violence",))


def test_scores_alone_are_safe_below_one_half():
    found = from_harm([0.0, 0.49, 0.5, 1.0, float("nan")])
    np.testing.assert_array_equal(found.safe, [True, True, False, False, False])
    np.testing.assert_array_equal(found.judged, [True, True, True, True, False])
    assert found.num_unjudged == 1


def test_system_turns_are_left_out_of_a_dialogue():
    user, answer, system = Message("user", "u"), Message("assistant", "a"), Message("system", "s")
    assert dialogue((system, user, answer, user)) == (user, answer, user)
    for turns in [(), (system,), (answer,), (user, answer), (user, user, user)]:
        with pytest.raises(JudgeError, match="expected user and assistant in turn"):
            dialogue(turns)
