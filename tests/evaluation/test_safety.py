"""The whole result of one model: what is in it, its JSON and Markdown, and what its notes say."""

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from jaxalign.evaluation.answerer import Answerer
from jaxalign.evaluation.answers import AnswersError
from jaxalign.evaluation.calibration import Calibration, Confusion
from jaxalign.evaluation.comparison import comparison_schema
from jaxalign.evaluation.helpfulness import HelpfulnessScores
from jaxalign.evaluation.judge_accuracy import judge_accuracy
from jaxalign.evaluation.result import SafetyResult, result_schema
from jaxalign.evaluation.safety import evaluate_answers
from jaxalign.run.summary import Figures
from tests.evaluation.judged import JUDGE, accuracy_of, answers_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
ANSWERS = answers_of(
    ("su", "theft"),
    ("s?", "theft fraud"),
    ("uu", "fraud"),
    ("su", "benign"),
    refused=[True, False, True, False, False, False, False, True],
    names=("theft", "fraud", "arson"),
)
SCORES = HelpfulnessScores("reward", np.array([1.0, 2.0, 4.0]), ["p0", "p0", "p1"])


@pytest.fixture(scope="module")
def result() -> SafetyResult:
    return evaluate_answers(
        ANSWERS,
        targets={"theft": 0.2, "arson": 0.1},
        margins={"theft": 1.5},
        judge_error=accuracy_of(80, 20, 90, 10),
        helpfulness_scores=SCORES,
        num_resamples=200,
    )


def test_counts_are_those_of_the_prompts(result):
    assert list(result.categories) == ["theft", "fraud"]
    theft, fraud = result.categories.values()
    assert (theft.prompts, theft.answers, theft.unjudged) == (2, 4, 1)
    assert (fraud.prompts, fraud.answers, fraud.unjudged) == (2, 4, 1)
    assert (result.overall.prompts, result.benign.prompts) == (3, 1)
    assert (result.over_refusal.prompts, result.under_refusal.prompts) == (1, 3)


def test_figures_are_those_counted_by_hand(result):
    assert result.categories["theft"].safe_rate.value == 0.5
    assert result.overall.safe_rate.value == pytest.approx(2 / 6)
    assert result.over_refusal.rate.value == 0.5
    assert result.under_refusal.rate.value == pytest.approx(1 - 2 / 6)
    assert result.spread["safe_rate"].gap.value == 0.25
    assert result.spread["safe_rate"].worst_category == "fraud"
    assert result.helpfulness.mean.value == pytest.approx(7 / 3)


def test_certificate_holds_targets_margins_and_the_category_without_prompts(result):
    theft, arson = result.certificate.constraints
    assert (theft.category, theft.margin, theft.target, theft.unjudged) == ("theft", 1.5, 0.2, 1)
    assert (arson.status, arson.prompts) == ("too few prompts", 0)
    assert result.certificate.judge_accuracy.pooled.unsafe_judged_safe == 20


def test_notes_say_what_a_reader_would_miss(result):
    assert result.notes == (
        "Answers that were not judged: 1 of 8; each counts as not safe.",
        "Prompts of several categories: 1; each counts in all of its own.",
        "Categories without prompts, so without figures: arson.",
        "2 of 3 categories have a target; the certificate says nothing of: fraud.",
    )
    assert result.certificate.without_target == ("fraud",)
    assert result.without_prompts == ("arson",)


def test_result_comes_back_from_its_json(result):
    assert SafetyResult.from_dict(json.loads(json.dumps(result.as_dict()))) == result


def test_json_of_something_else_is_refused(result):
    broken = result.as_dict()
    broken["categories"]["theft"].pop("safe_rate")
    with pytest.raises(ValidationError, match="safe_rate"):
        SafetyResult.from_dict(broken)


def test_every_field_of_the_json_is_documented():
    text = (DOCS / "evaluate.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(\w+)`", text))
    schemas = {"SafetyResult": result_schema(), "Comparison": comparison_schema()}
    parts = {name: part for schema in schemas.values() for name, part in schema["$defs"].items()} | schemas
    missing = {
        f"{part}.{name}" for part, of in parts.items() for name in of["properties"] if name not in documented
    }
    assert missing == set()


def test_documented_result_is_valid_json_of_the_schema():
    text = (DOCS / "evaluate.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    SafetyResult.from_dict(json.loads(shown))


def test_one_category_has_no_gap_to_show():
    text = evaluate_answers(answers_of(("s", "theft"), ("u", "theft")), num_resamples=100).markdown()
    assert "| gap, best to worst | - (one category) |" in text
    assert "expected if all were equal" in evaluate_answers(ANSWERS, num_resamples=100).markdown()


def test_a_narrow_terminal_shows_names_of_categories_whole():
    names = ("contrast_safe_contexts_of_all_kinds", "contrast_safe_contexts_of_no_kind")
    text = evaluate_answers(answers_of(("s", names[0]), ("u", names[1])), num_resamples=100).markdown()
    console = Console(width=70, record=True, file=io.StringIO())
    console.print(Figures(text))
    shown = console.export_text()
    assert "\u2026" not in shown
    first_column = "".join(line[:14].strip() for line in shown.splitlines())
    assert all(name in first_column for name in names)


def test_markdown_names_the_judge_its_limits_and_every_category(result):
    text = result.markdown()
    assert "judged by rule. It sees nothing." in text
    assert "| theft | 2 | 4 | 1 | 0.500 [" in text
    assert "expected if all were equal, p = " in text
    assert "Certificate: not all met, with 95% confidence (Bonferroni over 1 categories). 2 of 3" in text
    assert "2 of 3 categories have a target; none for: fraud." in text
    assert "- Categories without prompts, so without figures: arson." in text


def test_result_says_whose_answers_it_is_about():
    by = Answerer("cat_dpo", "ab12", 40, {"temperature": 0.5, "top_k": None})
    result = evaluate_answers(dataclasses.replace(ANSWERS, answerer=by), num_resamples=100)
    source = SafetyResult.from_dict(result.as_dict()).source
    assert (source.model, source.model_fingerprint, source.step) == ("cat_dpo", "ab12", 40)
    assert source.answer_settings == {"temperature": 0.5, "top_k": None}
    assert "Answers of cat\\_dpo at step 40 (temperature 0.5)." in result.markdown()


def test_result_of_an_earlier_version_is_read(result):
    old = result.as_dict()
    for name in ("model", "model_fingerprint", "step", "answer_settings"):
        del old["source"][name]
    assert SafetyResult.from_dict(old) == result


def test_markup_in_a_category_does_not_break_the_table():
    text = evaluate_answers(answers_of(("s", "a|b"), ("s", "c")), num_resamples=100).markdown()
    assert "| a\\|b | 1 |" in text
    text = evaluate_answers(answers_of(("s", "a"), ("s", "c")), num_resamples=100)
    broken = dataclasses.replace(text, categories={"a\r\nb\u2028c": text.categories["a"]})
    assert "| a b c | 1 |" in broken.markdown()


def test_markup_in_a_category_is_text_in_markdown_and_on_a_terminal():
    name = "<img/src=x>*Drugs*[a](b)_c_`d`"
    result = evaluate_answers(answers_of(("u", name), ("s", "plain")), targets=0.1, num_resamples=100)
    raw = result.markdown()
    assert "<img" not in raw.replace("\\<", "")
    console = Console(width=200, file=io.StringIO())
    console.print(Figures(raw))
    shown = " ".join(console.file.getvalue().split())
    assert (
        shown.count(name) == raw.count("img/src") == 4
    )  # its row, the worst of both figures, its constraint


def test_all_safe_has_no_gap_and_still_an_interval_that_reaches_down():
    found = evaluate_answers(answers_of(*[("s", "a")] * 5, *[("s", "b")] * 5), num_resamples=200)
    assert found.spread["safe_rate"].gap.value == 0.0
    assert found.spread["safe_rate"].gap_if_equal == 0.0
    assert found.spread["safe_rate"].gap_p_value == 1.0
    assert found.spread["safe_rate"].gap.high > 0.1
    assert found.overall.safe_rate.low < 0.9


def test_judged_rate_that_contradicts_the_calibration_is_noted():
    given = answers_of(*[("s", "a")] * 197, *[("u", "a")] * 3, *[("s", "b")] * 70, *[("u", "b")] * 30)
    notes = evaluate_answers(given, judge_error=accuracy_of(90, 10, 70, 30), num_resamples=200).notes
    assert any("contradicts the calibration: a, all." in note for note in notes)
    fitting = evaluate_answers(given, judge_error=accuracy_of(90, 10, 99, 1), num_resamples=200).notes
    assert not any("contradicts" in note for note in fitting)


def test_one_prompt_is_evaluated():
    found = evaluate_answers(answers_of(("s", "a")), targets=0.1, num_resamples=100)
    assert found.overall.safe_rate.value == 1.0
    assert found.certificate.constraints[0].status == "too few prompts"


def test_benign_prompts_alone_have_no_overall_figures():
    found = evaluate_answers(answers_of(("s", "benign"), refused=[True]), num_resamples=100)
    assert (found.overall, found.categories, found.spread) == (None, {}, {})
    assert found.over_refusal.rate.value == 1.0


def test_missing_refusals_and_categories_are_noted():
    found = evaluate_answers(answers_of(("s", ""), ("s", "benign")), num_resamples=100)
    assert (found.over_refusal, found.under_refusal) == (None, None)
    assert found.notes == (
        "No prompt has a category, so there are no figures per category and no gap.",
        "The judge's error is not known, so no interval holds it; calibrate the judge.",
        "Over-refusal is missing: no judge tells refusals.",
    )


def test_category_without_judged_answers_is_the_worst_and_has_no_harm():
    found = evaluate_answers(answers_of(("??", "a"), ("ss", "b"), ("us", "b")), num_resamples=100)
    assert found.categories["a"].mean_harm is None
    assert found.spread["safe_rate"].worst_category == "a"
    assert found.spread["mean_harm"].worst_category == "b"


def test_nothing_judged_is_an_error():
    with pytest.raises(AnswersError, match="rule judged none of 3 answers, expected some; check the judge"):
        evaluate_answers(answers_of(("??", "a"), ("?", "b")))


def test_margins_without_targets_are_refused():
    with pytest.raises(AnswersError, match="margins without targets have no effect"):
        evaluate_answers(ANSWERS, margins={"theft": 1.0})


def test_helpfulness_of_one_prompt_has_no_interval():
    scores = HelpfulnessScores("accuracy", np.array([1.0, 0.0]), ["p0", "p0"])
    mean = evaluate_answers(ANSWERS, helpfulness_scores=scores, num_resamples=100).helpfulness.mean
    assert (mean.value, mean.low, mean.high) == (0.5, None, None)


@pytest.mark.parametrize(
    ("scores", "prompts", "message"),
    [
        ([1.0, np.nan], ["a", "b"], "reward: score 1 is nan, expected a finite number"),
        ([1.0], ["a", "b"], r"scores of shape \(1,\) for 2 prompts: name the prompt of every score"),
    ],
)
def test_scores_that_say_nothing_are_refused(scores, prompts, message):
    with pytest.raises(AnswersError, match=message):
        HelpfulnessScores("reward", np.array(scores), prompts)


def test_calibration_becomes_the_accuracy_of_the_judge():
    confusion = Confusion(30, 10, 50, 10, 5, 0)
    few, enough = Confusion(5, 5, 5, 5, 0, 0), Confusion(19, 1, 18, 2, 0, 0)
    calibration = Calibration(
        JUDGE, "", "labels.csv", 25, confusion, {"few": few, "own": enough, "(none)": enough}
    )
    found = judge_accuracy(calibration)
    assert found.categories == {"own": enough}
    assert found.answers_per_prompt == 4.0
    assert found.unsafe("few") == (7.5, 2.5)
    assert found.safe("own") == (4.5, 0.5)
