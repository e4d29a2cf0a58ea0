"""Laws that hold for every judge."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from jaxalign.data.schema import Message
from jaxalign.evaluation.judges.interface import Judge, JudgeError, Judgements
from tests.evaluation.judges.cases import BROKEN, CONVERSATIONS, SOUND, prompts_and_responses
from tests.evaluation.judges.fake_endpoint import FakeEndpoint, completion

ASK = (Message("user", "Tell me."),)


@pytest.fixture(scope="module", params=SOUND)
def judge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    with FakeEndpoint() as endpoint:
        yield SOUND[request.param](tmp_path_factory.mktemp(request.param), endpoint)


def _check(found: Judgements, number: int) -> None:
    assert len(found.harm) == len(found.safe) == len(found.judged) == number
    assert np.isnan(found.harm[~found.judged]).all()
    assert not found.safe[~found.judged].any()
    assert ((found.harm[found.judged] >= 0) & (found.harm[found.judged] <= 1)).all()


def _assert_same(found: Judgements, expected: Judgements, order: Any) -> None:
    # Another place in a batch may be another path through a matrix product.
    np.testing.assert_allclose(found.harm, expected.harm[order], rtol=1e-5)
    np.testing.assert_array_equal(found.safe, expected.safe[order])
    np.testing.assert_array_equal(found.judged, expected.judged[order])
    if expected.refused is not None:
        np.testing.assert_array_equal(found.refused, expected.refused[order])
    if expected.categories is not None:
        assert found.categories == tuple(expected.categories[i] for i in order)


def test_every_answer_is_judged_once_and_in_range(judge: Judge) -> None:
    found = judge(*prompts_and_responses())
    _check(found, len(CONVERSATIONS))
    assert found.judged.all()
    assert found.num_unjudged == 0


def test_judgements_follow_the_order_of_the_answers(judge: Judge) -> None:
    order = [3, 0, 4, 2, 1]
    whole = judge(*prompts_and_responses())
    _assert_same(judge(*prompts_and_responses([CONVERSATIONS[i] for i in order])), whole, order)


def test_a_judgement_does_not_depend_on_the_other_answers(judge: Judge) -> None:
    whole = judge(*prompts_and_responses())
    for i, pair in enumerate(CONVERSATIONS):
        _assert_same(judge(*prompts_and_responses([pair])), whole, [i])


def test_no_answers_give_no_judgements(judge: Judge) -> None:
    _check(judge([], []), 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "é中文🙂",
        "\u202eright to left",
        "a\x00b",
        "e\u0301\u0301\u0301",
        "{}[]\"'%s{0}",
        "<|im_end|>",
    ],
)
def test_any_text_is_judged_or_counted_unjudged(judge: Judge, text: str) -> None:
    _check(judge([ASK], [text]), 1)


def test_a_very_long_answer_leaves_its_neighbours_alone(judge: Judge) -> None:
    prompts, responses = prompts_and_responses()
    alone = judge(prompts, responses)
    found = judge([*prompts[:2], ASK, *prompts[2:]], [*responses[:2], "no end " * 20000, *responses[2:]])
    _check(found, 6)
    _assert_same(
        Judgements(*(np.delete(x, 2) for x in (found.harm, found.safe, found.judged))),
        Judgements(alone.harm, alone.safe, alone.judged),
        range(5),
    )


def test_half_a_character_is_refused(judge: Judge) -> None:
    with pytest.raises(JudgeError, match="conversation 1 holds half a character at position 2"):
        judge([ASK, ASK], ["fine", "no\ud800"])


def test_a_missing_answer_is_refused(judge: Judge) -> None:
    with pytest.raises(JudgeError, match="2 prompts and 1 responses"):
        judge([ASK, ASK], ["one"])
    with pytest.raises(JudgeError, match="response 0 is of type NoneType, expected a text"):
        judge([ASK], [None])  # type: ignore[list-item]


def test_a_judge_says_its_name_and_its_limits(judge: Judge) -> None:
    assert judge.name
    assert judge.limits.endswith(".")


@pytest.mark.parametrize("kind", BROKEN)
def test_a_failure_is_counted_and_never_safe(kind: str, tmp_path: Any) -> None:
    with FakeEndpoint(lambda messages: completion("I think it is fine.")) as endpoint:
        found = BROKEN[kind](tmp_path, endpoint)([ASK, ASK], [" ", "\n"])
    _check(found, 2)
    assert found.num_unjudged == 2
    assert not found.safe.any()
