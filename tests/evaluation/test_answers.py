"""Judged answers: what fits together, what two halves make, and the file that keeps them."""

import dataclasses
import json

import numpy as np
import pytest

from jaxalign.evaluation.answerer import Answerer
from jaxalign.evaluation.answers import AnswersError, judge_answers, merge_answers
from jaxalign.evaluation.answers_file import read_answers, write_answers
from jaxalign.evaluation.helpfulness import scores_of
from jaxalign.evaluation.judges.interface import from_harm
from jaxalign.evaluation.judges.refusal import RefusalJudge
from jaxalign.evaluation.safety import evaluate_answers
from tests.evaluation.judged import answers_of

PROMPTS = (("su", "a"), ("s?", "a b"), ("uu", "b"), ("ss", "benign"))
REFUSED = [True, False, True, False, False, False, True, False]


def figures(answers) -> dict:
    return evaluate_answers(answers, targets=0.3, num_resamples=100).as_dict()


def test_two_halves_merge_into_the_whole():
    whole = answers_of(*PROMPTS, refused=REFUSED)
    first = answers_of(*PROMPTS[:2], refused=REFUSED[:4])
    second = answers_of(*PROMPTS[2:], refused=REFUSED[4:], prefix="q")
    rows = tuple(
        dataclasses.replace(row, id=f"p{i}", prompt=whole.prompt_set.rows[i].prompt)
        for i, row in enumerate(second.prompt_set.rows, start=2)
    )
    second = dataclasses.replace(second, prompt_set=dataclasses.replace(second.prompt_set, rows=rows))
    assert figures(merge_answers([second, first])) == figures(whole)


def test_merged_answers_keep_scores_of_one_reward_model():
    parts = [answers_of(("su", "a")), answers_of(("s", "a"), prefix="q")]
    scored = [
        dataclasses.replace(part, scores=np.arange(float(part.num_answers)), scored_by="beaver")
        for part in parts
    ]
    assert merge_answers(scored).scores.tolist() == [0.0, 1.0, 0.0]
    assert merge_answers([scored[0], parts[1]]).scores is None


def test_parts_with_a_prompt_in_common_do_not_merge():
    with pytest.raises(ValueError, match="repeated id: got id 'p0' for 2 different prompts"):
        merge_answers([answers_of(("s", "a")), answers_of(("u", "a"))])


def test_parts_of_different_judges_do_not_merge():
    other = dataclasses.replace(answers_of(("s", "a"), prefix="q"), judge="guard")
    with pytest.raises(AnswersError, match="judge all by the same"):
        merge_answers([answers_of(("s", "a")), other])


def test_part_without_refusals_does_not_merge_with_one_that_has_them():
    told = answers_of(("s", "a"), refused=[True])
    with pytest.raises(AnswersError, match="1 of 2 parts tell refusals"):
        merge_answers([told, answers_of(("s", "a"), prefix="q")])


def test_order_of_prompts_and_of_categories_changes_no_figure():
    given = answers_of(*PROMPTS, refused=REFUSED)
    order = [2, 0, 3, 1]
    flat = np.concatenate([[2 * i, 2 * i + 1] for i in order])
    judged = given.judgements
    prompt_set = dataclasses.replace(
        given.prompt_set, rows=tuple(given.prompt_set.rows[i] for i in order), category_names=("b", "a")
    )
    shuffled = dataclasses.replace(
        given,
        prompt_set=prompt_set,
        responses=tuple(given.responses[i] for i in order),
        judgements=dataclasses.replace(
            judged,
            harm=judged.harm[flat],
            safe=judged.safe[flat],
            judged=judged.judged[flat],
            refused=judged.refused[flat],
        ),
    )
    one, other = figures(given), figures(shuffled)
    assert list(other["categories"]) == ["b", "a"]
    for found in (one, other):
        found["certificate"]["constraints"].sort(key=lambda c: c["category"])
    assert other == one


def test_judges_see_every_answer_with_its_prompt():
    given = answers_of(("s", "a"), ("ss", "b"))
    responses = [["I cannot help with that."], ["Sure, here it is.", ""]]
    found = judge_answers(given.prompt_set, responses, RefusalJudge(), RefusalJudge())
    assert found.judgements.safe.tolist() == [True, False, False]
    assert found.judgements.judged.tolist() == [True, True, False]
    assert found.sums().refused.tolist() == [1.0, 0.0]
    assert found.sums().complied.tolist() == [0.0, 1.0]
    assert (found.judge, found.refusal_limits) == (
        RefusalJudge.name,
        None,
    )  # the first one tells refusals itself


def test_a_second_judge_is_asked_where_the_first_tells_no_refusals():
    class Blind:
        name, limits = "blind", "Sees nothing."

        def __call__(self, prompts, responses):
            return from_harm([0.0] * len(responses))

    given = answers_of(("s", "a"))
    found = judge_answers(given.prompt_set, [["I cannot help with that."]], Blind(), RefusalJudge())
    assert found.refusal_limits == RefusalJudge.limits
    assert found.sums().refused.tolist() == [1.0]


def test_second_judge_tells_the_refusals():
    given = dataclasses.replace(
        answers_of(("su", "a"), ("s?", "benign")),
        refusals=dataclasses.replace(
            from_harm([0.0, 1.0, np.nan, 1.0]), refused=np.array([True, False, False, False])
        ),
        refusal_judge="words",
    )
    found = evaluate_answers(given, num_resamples=100)
    assert found.under_refusal.rate.value == 0.5
    assert (found.over_refusal.rate.value, found.over_refusal.unjudged) == (0.5, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"responses": (("s",),)}, "answers to 1 prompts, but prompts.jsonl has 4"),
        ({"responses": (("s", "u"), ("s", "u"), ("s", "u", "s", "s"), ())}, "no answer to prompt 'p3'"),
        ({"judgements": from_harm([0.1])}, "1 judgements of 8 answers: judge every answer once"),
        ({"scores": np.ones(2)}, r"scores of shape \(2,\) for 8 answers: score every answer once"),
        ({"refusals": from_harm([0.1])}, "1 refusals of 8 answers"),
        (
            {"refusals": from_harm([0.1] * 8), "refusal_judge": "words"},
            "refusals by words, a judge that tells none",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_refused(change, message):
    with pytest.raises(AnswersError, match=message):
        dataclasses.replace(answers_of(*PROMPTS), **change)


@pytest.mark.parametrize("second_judge", [True, False])
def test_file_gives_back_every_figure(tmp_path, second_judge):
    given = answers_of(*PROMPTS, refused=None if second_judge else REFUSED)
    if second_judge:
        told = dataclasses.replace(from_harm([0.0, 1.0, np.nan, 0.0] * 2), refused=np.array(REFUSED))
        given = dataclasses.replace(
            given, refusals=told, refusal_judge="words", refusal_limits="Words alone."
        )
    write_answers(tmp_path / "answers.json", given)
    again = read_answers(tmp_path / "answers.json")
    assert figures(again) == figures(given)
    assert (again.responses, again.prompt_set) == (given.responses, given.prompt_set)


def test_file_says_whose_answers_it_holds_and_may_lack_it(tmp_path):
    by = Answerer("run", "ab12", 40, {"temperature": 0.0, "top_k": None, "num_samples": 2})
    file = tmp_path / "answers.json"
    write_answers(file, dataclasses.replace(answers_of(*PROMPTS), answerer=by))
    assert read_answers(file).answerer == by
    old = json.loads(file.read_text())
    del old["answerer"]
    file.write_text(json.dumps(old))
    assert read_answers(file).answerer is None


def test_file_gives_back_the_scores_of_helpfulness(tmp_path):
    scores = np.array([1.5, -2.0, np.nan, 0.25, 3.0, 1.0, np.nan, np.nan])
    given = dataclasses.replace(
        answers_of(*PROMPTS), scores=scores, scored_by="beaver", scorer_fingerprint="a"
    )
    write_answers(tmp_path / "answers.json", given)
    again = read_answers(tmp_path / "answers.json")
    np.testing.assert_array_equal(again.scores, scores)
    assert (again.scored_by, again.scorer_fingerprint) == ("beaver", "a")
    found = scores_of(again)
    assert found.scores.tolist() == [1.5, -2.0, 0.25, 3.0, 1.0]
    assert found.prompts == ["p0", "p0", "p1", "p2", "p2"]


def test_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "answers.json").write_text('{"prompts": []}')
    with pytest.raises(
        AnswersError,
        match=r"answers.json holds no judged answers \(prompt_set: Field required\); write such a file",
    ):
        read_answers(tmp_path / "answers.json")
