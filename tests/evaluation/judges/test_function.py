"""Functions of users: found by path, and checked."""

from typing import Any

import numpy as np
import pytest

from jaxalign.data.schema import Message
from jaxalign.evaluation.judges.function import FunctionJudge, load_function
from jaxalign.evaluation.judges.interface import JudgeError, from_harm

ASK = (Message("user", "Tell me."),)


def judged(result: Any) -> Any:
    return FunctionJudge(lambda prompts, responses: result, "f")([ASK, ASK], ["a", "b"])


@pytest.mark.parametrize("result", [[0.2, 1], (0.2, 1.0), np.array([0.2, 1.0], np.float32)])
def test_scores_of_any_sequence_are_taken(result):
    found = judged(result)
    np.testing.assert_allclose(found.harm, [0.2, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(found.safe, [True, False])


def test_judgements_are_taken_as_they_are():
    given = from_harm([0.9, 0.1], safe=np.array([True, False]), categories=("x", None))
    assert judged(given) is given


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (0.5, r"gave an array of shape \(\); expected one harm score"),
        ([[0.5], [0.5]], r"gave an array of shape \(2, 1\)"),
        ([0.5], "judged 1 of 2 answers; judge each"),
        ([0.5, 1.5], "harm=1.5"),
        ([0.5, float("inf")], "harm=inf"),
        (["0.5", "0.5"], r"gave \['0.5', '0.5'\] \(texts or flags\)"),
        ([True, False], "texts or flags"),
        (None, r"gave an array of shape \(\)"),
        ({"harm": 1}, "f gave {'harm': 1}"),
        ([[0.5], [0.5, 0.5]], "expected one harm score"),
    ],
)
def test_what_is_no_score_for_each_answer_is_refused(result, error):
    with pytest.raises(JudgeError, match=error):
        judged(result)


def test_an_exception_of_the_function_is_an_error_of_the_judge():
    def broken(prompts, responses):
        raise KeyError("lexicon")

    with pytest.raises(JudgeError, match="function broken raised KeyError: 'lexicon'"):
        FunctionJudge(broken, "broken")([ASK], ["a"])


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("no_such_module:judge", r"cannot import no_such_module .*put its folder on PYTHONPATH"),
        ("json:no_such_function", "json has no function no_such_function"),
        ("json:__name__", "give package.module:name of a callable"),
    ],
)
def test_a_path_to_no_function_is_refused(path, error):
    with pytest.raises(JudgeError, match=error):
        load_function(path)


@pytest.mark.parametrize(
    ("code", "error"),
    [("def judge(:", "raised SyntaxError: .*; mend the module"), ("1 / 0", "raised ZeroDivisionError")],
)
def test_a_module_that_cannot_be_run_is_an_error_of_the_judge(code, error, tmp_path, monkeypatch):
    (tmp_path / "unsound_judge.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(JudgeError, match=f"importing unsound_judge {error}"):
        load_function("unsound_judge:judge")
