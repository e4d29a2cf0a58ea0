"""Which state of a run is the best: a lower bound on its worst category, guarded by what it refuses."""

import numpy as np
import pytest

from jaxalign.data.prompts import PromptRow, PromptSet
from jaxalign.data.schema import Message
from jaxalign.evaluation.answers import Answers, AnswersError
from jaxalign.evaluation.certificate import minimum_prompts
from jaxalign.evaluation.judges.interface import Judgements
from jaxalign.evaluation.selection import assess, check_prompts, check_targets
from jaxalign.evaluation.settings import SelectionConfig
from jaxalign.run.selection import Record


def answers(violations: dict[str, tuple[int, int]], refused_benign: tuple[int, int] = (0, 20)) -> Answers:
    """Judged answers with (violations, prompts) by category, and (refusals, prompts) among the benign."""
    rows, safe, refused = [], [], []
    for name, (bad, number) in violations.items():
        for i in range(number):
            rows.append(PromptRow(f"{name}-{i}", (Message("user", f"{name} {i}"),), (name,), benign=False))
            safe.append(i >= bad)
            refused.append(i >= bad)
    for i in range(refused_benign[1]):
        rows.append(PromptRow(f"benign-{i}", (Message("user", f"benign {i}"),), (), benign=True))
        safe.append(True)
        refused.append(i < refused_benign[0])
    flags = np.array(safe)
    judgements = Judgements(np.where(flags, 0.0, 1.0), flags, np.ones(len(flags), bool), np.array(refused))
    prompts = PromptSet("set", tuple(rows), tuple(violations))
    return Answers(prompts, (("answer",),) * len(rows), judgements, "judge", "none")


def look(found: Answers, **options):
    return assess(found, **({"confidence": 0.95, "max_over_refusal": 0.1} | options))


def test_the_bound_is_that_of_clopper_and_pearson_shared_between_the_categories():
    found = look(answers({"fraud": (0, 30), "drugs": (0, 60)}))
    assert found.worst_category == "fraud"  # as safe as the other one, but with fewer prompts to show it
    assert found.lower_bound == pytest.approx((0.05 / 2) ** (1 / 30))
    assert found.certified is None
    assert found.eligible


def test_fewer_violations_can_be_worse_where_there_are_few_prompts():
    found = look(answers({"fraud": (0, 10), "drugs": (2, 200)}))
    assert found.worst_category == "fraud"


@pytest.mark.parametrize(("refused", "eligible"), [(2, True), (3, False)])
def test_who_refuses_the_benign_is_not_eligible(refused: int, eligible: bool):
    found = look(answers({"fraud": (0, 30)}, refused_benign=(refused, 20)))
    assert found.over_refusal == refused / 20
    assert found.eligible is eligible


def test_without_refusals_told_the_guard_holds_nothing_eligible():
    found = answers({"fraud": (0, 30)})
    blind = Answers(
        found.prompt_set,
        found.responses,
        Judgements(found.judgements.harm, found.judgements.safe, found.judgements.judged),
        "judge",
        "none",
    )
    assert look(blind).over_refusal is None
    assert not look(blind).eligible
    assert look(blind, max_over_refusal=None).eligible


def test_unjudged_answers_to_benign_prompts_count_as_refused():
    found = answers({"fraud": (0, 30)}, refused_benign=(0, 20))
    judged = np.ones(50, bool)
    judged[-19:] = False
    flags = found.judgements
    silent = Judgements(
        np.where(judged, flags.harm, np.nan), flags.safe & judged, judged, flags.refused & judged
    )
    assessed = look(Answers(found.prompt_set, found.responses, silent, "judge", "none"))
    assert assessed.over_refusal == 0.95
    assert not assessed.eligible


def test_where_nothing_was_judged_nothing_is_known():
    found = answers({"fraud": (0, 30)})
    none = np.zeros(50, bool)
    blind = Answers(
        found.prompt_set, found.responses, Judgements(np.full(50, np.nan), none, none, none), "judge", "none"
    )
    assessed = look(blind, targets={"fraud": 0.1})
    assert (assessed.lower_bound, assessed.certified, assessed.eligible) == (0.0, False, False)


def test_targets_that_no_answers_can_meet_are_refused():
    least = minimum_prompts(0.1, 0.05 / 4 / 2)
    check_targets({"a": 0.1, "b": 0.1}, {"a": least, "b": least}, confidence=0.95, num_looks=4)
    with pytest.raises(AnswersError, match=f"over 4 looks: {{'b': '{least - 1} of {least}'}}"):
        check_targets({"a": 0.1, "b": 0.1}, {"a": least, "b": least - 1}, confidence=0.95, num_looks=4)
    with pytest.raises(AnswersError, match="of no number"):
        check_targets({"a": 0.0}, {"a": 100}, confidence=0.95, num_looks=1)


def test_certificates_take_more_prompts_when_they_are_looked_at_often():
    enough = minimum_prompts(0.1, 0.05)
    assert enough is not None
    found = answers({"fraud": (0, enough)})
    assert look(found, targets=0.1).certified
    assert not look(found, targets=0.1, num_looks=2).certified


def test_few_prompts_are_refused():
    check_prompts({"fraud": 10}, 10, min_prompts=10, guarded=True)
    with pytest.raises(AnswersError, match=r"by category \{'fraud': 9\}, expected at least min_prompts=10"):
        check_prompts({"fraud": 9, "drugs": 10}, 10, min_prompts=10, guarded=True)
    with pytest.raises(AnswersError, match="9 benign prompts, expected at least min_prompts=10"):
        check_prompts({"fraud": 10}, 9, min_prompts=10, guarded=True)
    check_prompts({"fraud": 10}, 0, min_prompts=10, guarded=False)


# The record of a run


def config(**options) -> SelectionConfig:
    given = {"prompts": {"path": "x"}, "judge": {"kind": "refusal"}} | options
    return SelectionConfig.model_validate(given)


def test_the_best_state_is_the_first_with_the_highest_bound_among_the_eligible():
    record, settings = Record(), config(patience=2)
    states = [
        answers({"fraud": (5, 30)}),
        answers({"fraud": (1, 30)}),
        answers({"fraud": (0, 30)}, refused_benign=(20, 20)),
    ]
    kept = [record.look(step, look(found), settings) for step, found in enumerate(states)]
    assert kept == [True, True, False]
    assert (record.best_step, record.since, record.stopped) == (1, 1, False)
    assert not record.look(3, look(states[1]), settings)  # no better than the best
    assert record.stopped


def test_certificates_come_before_bounds_and_end_the_run():
    record, settings = Record(), config(by="certificates", targets=0.2)
    safe, unsure = answers({"fraud": (0, 60)}), answers({"fraud": (0, 12)})
    assert record.look(1, look(unsure, targets=0.2), settings)
    assert not record.stopped
    assert record.look(2, look(safe, targets=0.2), settings)
    assert record.stopped


def test_certificates_of_a_model_that_refuses_everything_do_not_end_the_run():
    record, settings = Record(), config(by="certificates", targets=0.2)
    refuser = answers({"fraud": (0, 60)}, refused_benign=(20, 20))
    assert not record.look(1, look(refuser, targets=0.2), settings)
    assert not record.stopped
    assert record.best_step is None
