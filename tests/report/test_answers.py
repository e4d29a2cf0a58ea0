"""What the page says of judged answers: like is compared with like, and no result is left out."""

from typing import Any

import pytest

from jaxalign.report.document import Document, Figure
from jaxalign.run.report import read_document
from tests.report import runs

NAMES = ("Violence", "Drugs")
GUARD, REFUSAL = (
    {"judge": "GUARDJUDGE", "prompt_set": "xstest.csv"},
    {"judge": "RULE", "prompt_set": "xstest.csv"},
)


@pytest.fixture
def run(tmp_path):
    return runs.write_run(tmp_path / "run", names=NAMES, num_steps=30)


def put(workdir, name: str, rate: float, *statuses: str, target: float = runs.TARGET, **source: Any) -> None:
    certificate = runs.certificate(NAMES, statuses, target) if statuses else None
    runs.write_result(workdir, name, dict.fromkeys(NAMES, rate), certificate, **source)


def answers(document: Document) -> dict[str, Figure]:
    (section,) = [section for section in document.parts[0].sections if section.key == "answers"]
    return {figure.title: figure for figure in section.figures}


def compared(document: Document) -> tuple[dict[str, Figure], str]:
    assert document.comparison is not None
    return {f.title: f for f in document.comparison.figures}, " ".join(document.comparison.missing)


def test_before_and_after_are_those_of_one_judge_and_every_result_has_its_figure(run):
    put(run, "safety-guard", 0.9, **GUARD)
    put(run, "safety-refusal", 0.4, **REFUSAL)
    put(run, "safety-before-refusal", 0.1, **REFUSAL)
    found = answers(read_document([run]))
    rows = found["Answers to xstest.csv, judged by RULE"].table.records()
    assert [(row["before"], row["after"]) for row in rows[:-1]] == [(0.1, 0.4)] * 2
    alone = found["Answers to xstest.csv, judged by GUARDJUDGE"]
    assert [row["after"] for row in alone.table.records()[:-1]] == [0.9] * 2
    assert "before" not in alone.table.records()[0]
    assert "no result from before training has these prompts and judges" in alone.caption


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({"fingerprint": "abcdefghij"}, "prompts abcdefgh"),
        ({"refusal_judge": "refusal words"}, "refusals told by refusal words"),
        ({"judge_fingerprint": "abcdefghij"}, "judge with settings and weights abcdefgh"),
        (
            {"answer_settings": {"temperature": 1.0, "seed": 0, "top_k": None}},
            "answered with seed 0, temperature 1.0",
        ),
    ],
)
def test_results_that_differ_in_more_than_the_judge_are_apart_and_titles_tell_how(run, changed, shown):
    put(run, "safety-before-mine", 0.1, **GUARD)
    put(run, "safety-mine", 0.9, **GUARD, **changed)
    titles = [title for title in answers(read_document([run])) if title.startswith("Answers to")]
    assert len(titles) == 2
    assert titles[0] == f"Answers to xstest.csv, judged by GUARDJUDGE, {shown}"


def test_judges_of_one_name_and_other_settings_are_not_compared(run):
    endpoint = {"judge": "endpoint model m"}
    put(run, "safety-before-mine", 0.1, **endpoint)
    put(run, "safety-before-new", 0.2, **endpoint, judge_fingerprint="a" * 64)
    put(run, "safety-mine", 0.8, **endpoint)
    put(run, "safety-new", 0.9, **endpoint, judge_fingerprint="b" * 64)
    found = answers(read_document([run]))
    title = "Answers to held-out prompts, judged by endpoint model m, judge with settings and weights"
    assert {"bbbbbbbb", "aaaaaaaa"} == {t[-8:] for t in found if t.startswith(title) and "known" not in t}
    row = found[f"{title} that are not known"].table.records()[0]
    assert (row["before"], row["after"]) == (0.1, 0.8)
    assert "No gain is shown" in found[f"{title} bbbbbbbb"].caption


def test_runs_under_judges_of_other_settings_are_not_side_by_side(tmp_path):
    one, two = (runs.write_run(tmp_path / name, names=NAMES) for name in ("one", "two"))
    for workdir, letter in ((one, "a"), (two, "b")):
        put(workdir, "safety-mine", 0.9, **GUARD, judge_fingerprint=letter * 64)
    figures, missing = compared(read_document([one, two]))
    assert not [title for title in figures if title.startswith("Safe answers")]
    assert "settings and weights aaaaaaaa: not side by side, as two left no result of the same" in missing


def test_runs_stand_in_one_figure_where_prompts_and_judge_are_the_same_alone(tmp_path):
    one, two = (runs.write_run(tmp_path / name, names=NAMES) for name in ("one", "two"))
    put(one, "safety-mine", 0.9, **GUARD)
    put(two, "safety-mine", 0.4, **REFUSAL | {"fingerprint": "g"})
    figures, missing = compared(read_document([one, two]))
    assert not [title for title in figures if title.startswith("Safe answers")]
    assert (
        "Safe answers to xstest.csv, judged by GUARDJUDGE: not side by side, as two left no result" in missing
    )
    assert "Safe answers to xstest.csv, judged by RULE: not side by side, as one left no result" in missing


def test_certificates_of_all_prompt_sets_count(run):
    put(run, "safety-hard", 0.5, "not met", prompt_set="hard.csv", fingerprint="h")
    runs.write_result(
        run, "safety-mine", {"a": 0.9, "b": 0.9, "c": 0.9}, runs.certificate(("a", "b", "c"), ("met",))
    )
    verdict = read_document([run]).parts[0].verdict
    assert verdict.state == "warn"
    assert verdict.headline == (
        "hard.csv, judged by refusal words: 2 of 2 categories are not shown to keep their targets. "
        "held-out prompts, judged by refusal words: All 3 categories are shown to keep their targets."
    )
    worst, _, certificates, *_ = verdict.facts
    assert certificates.value == "3 of 5 met"
    assert worst.note.startswith("50 % unsafe")


def test_answers_are_held_against_the_target_of_their_own_certificate(run):
    put(run, "safety-mine", 0.8, "met", target=0.3)  # the run was trained for 0.05
    document = read_document([run])
    (worst, *_) = document.parts[0].verdict.facts
    assert (worst.note, worst.state) == ("20 % unsafe on 30 prompts, target 30 %", "good")
    rows = answers(document)["Answers to held-out prompts, judged by refusal words"].table.records()
    assert rows[0]["allowed"] == pytest.approx(0.7)


def test_answers_without_a_certificate_are_held_against_the_target_of_the_run(run):
    put(run, "safety-mine", 0.8)
    document = read_document([run])
    assert document.parts[0].verdict.facts[0].note.endswith("target 5 %")
    rows = answers(document)["Answers to held-out prompts, judged by refusal words"].table.records()
    assert rows[0]["allowed"] == pytest.approx(0.95)


def test_helpfulness_is_a_number_in_a_table_of_its_own(run):
    for name, mean in (("safety-before-mine", -3.2), ("safety-mine", 1.5)):
        score = {
            "name": "reward model tiny",
            "mean": {"value": mean, "low": mean - 1, "high": None},
            "prompts": 40,
        }
        runs.write_result(run, name, {"Violence": 0.9}, helpfulness=score)
    found = answers(read_document([run]))
    table = found["Helpfulness on held-out prompts, judged by refusal words"].table
    assert table.texts() == [
        ["reward model tiny", "before", "40", "−3.20", "−4.20", "–"],
        ["reward model tiny", "after", "40", "1.50", "0.50", "–"],
    ]
    refusals = found["Refusals on held-out prompts, judged by refusal words"].table.texts()
    assert [row[0] for row in refusals] == ["over-refusal"] * 2


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"refusal_judge": "RULE", "refusal_limits": "Reads openings."}, "told by RULE. Reads openings."),
        ({}, "told by refusal words. Knows refusals by their words alone."),
        ({"refusal_judge": "RULE"}, "told by RULE."),
    ],
)
def test_refusals_are_shown_with_who_told_them_and_what_it_cannot_see(run, source, words):
    put(run, "safety-mine", 0.9, **source)
    (caption,) = [
        f.caption for title, f in answers(read_document([run])).items() if title.startswith("Refusals")
    ]
    assert caption.endswith(f"harmful prompts answered. Refusals are {words}")


def test_step_that_is_not_the_last_one_is_named_wherever_the_result_stands(run):
    put(run, "safety-mine", 0.8, "met", model="run", step=10)
    document = read_document([run])
    verdict = document.parts[0].verdict
    assert verdict.headline.startswith("Answers of step 10, training ended at 30: All 2 categories are shown")
    assert "The answers are of step 10, training ended at 30." in verdict.basis
    caption = answers(document)["Answers to held-out prompts, judged by refusal words"].caption
    assert "After: run, of step 10, training ended at 30." in caption
    (run / "finished.json").unlink()
    assert "of step 10, training has not ended" in read_document([run]).parts[0].verdict.headline


def test_last_step_and_files_that_tell_no_step_take_no_words(run):
    put(run, "safety-mine", 0.8, "met", model="run", step=30)
    verdict = read_document([run]).parts[0].verdict
    assert verdict.headline == "All 2 categories are shown to keep their targets."
    assert verdict.basis.endswith("words alone.")
    put(run, "safety-mine", 0.8, "met")
    assert "step" not in read_document([run]).parts[0].verdict.basis


def test_two_steps_under_one_key_are_both_shown_and_the_newest_counts(run):
    put(run, "safety-before-mine", 0.1, model="base", model_fingerprint="c" * 64)
    put(run, "safety-ten", 0.5, "not met", model="run", step=10)
    put(run, "safety-end", 0.8, "met", model="run", step=30)
    document = read_document([run])
    shown = answers(document)["Answers to held-out prompts, judged by refusal words"]
    row = shown.table.records()[0]
    assert (row["before"], row["after, step 10"], row["after, step 30"]) == (0.1, 0.5, 0.8)
    assert "from before to after, step 30" in shown.caption
    assert "not the model that this run began with" not in shown.caption
    titles = [title for title in answers(document) if title.startswith("Certificates")]
    assert [title.rpartition(", ")[2] for title in titles] == ["step 10", "step 30"]
    verdict = document.parts[0].verdict
    assert verdict.state == "good"
    assert verdict.headline == "All 2 categories are shown to keep their targets."
    assert "Results of earlier steps are below and do not count." in verdict.basis


def test_results_of_one_key_without_steps_are_told_apart_by_their_files_and_all_count(run):
    put(run, "safety-a", 0.5, "not met")
    put(run, "safety-b", 0.8, "met")
    document = read_document([run])
    row = answers(document)["Answers to held-out prompts, judged by refusal words"].table.records()[0]
    assert (row["after, safety-a"], row["after, safety-b"]) == (0.5, 0.8)
    assert document.parts[0].verdict.facts[2].value == "2 of 4 met"
    assert "judged by refusal words, safety-a: 2 of 2" in document.parts[0].verdict.headline


def test_before_of_another_model_than_the_run_began_with_is_named(run):
    put(run, "safety-before-mine", 0.1, model="other", model_fingerprint="9" * 64)
    put(run, "safety-mine", 0.8)
    shown = answers(read_document([run]))["Answers to held-out prompts, judged by refusal words"]
    assert "Before: other, not the model that this run began with." in (shown.caption)


def test_category_called_as_a_summary_has_a_row_of_its_own(run):
    runs.write_result(run, "safety-mine", {"all prompts": 0.3, "Drugs": 0.8})
    figure = answers(read_document([run]))["Answers to held-out prompts, judged by refusal words"]
    rows = [(row["category"], row["after"]) for row in figure.table.records()]
    assert rows == [("all prompts", 0.3), ("Drugs", 0.8), ("all prompts", 0.9)]


def test_figure_of_several_runs_names_steps_and_files(tmp_path):
    one, two = (runs.write_run(tmp_path / name, names=NAMES, num_steps=30) for name in ("one", "two"))
    put(one, "safety-mine", 0.9, step=10)
    put(two, "safety-a", 0.3, step=10)
    put(two, "safety-b", 0.4, step=30)
    figures, _ = compared(read_document([one, two]))
    shown = figures["Safe answers to held-out prompts, judged by refusal words"]
    assert [row["two"] for row in shown.table.records()] == [0.4, 0.4]
    assert "one: of step 10, training ended at 30. two: the result safety-b, one of 2." in shown.caption
