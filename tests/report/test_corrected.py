"""Rates corrected for the judge's error: shown wherever they are known, and compared with their like alone."""

import pytest

from jaxalign.evaluation.safety import evaluate_answers
from jaxalign.report.safety_files import read_safety
from jaxalign.run.report import read_document
from tests.evaluation import judged
from tests.report import runs

NAMES = ("Violence", "Drugs")
JUDGED, CORRECTED = {"Violence": 0.8, "Drugs": 0.9}, {"Violence": 0.75, "Drugs": 0.6}
TITLE = "Answers to held-out prompts, judged by refusal words"


@pytest.fixture
def run(tmp_path):
    return runs.write_run(tmp_path / "run", names=NAMES, num_steps=30)


def shown(workdir):
    part = read_document([workdir]).parts[0]
    return part.verdict, next(f for f in part.sections[0].figures if f.title == TITLE)


def dots(figure):
    return [
        mark.title
        for mark in figure.draw(760).marks
        if getattr(mark, "title", "").startswith(("Violence, ", "Drugs, "))
    ]


def test_verdict_rests_on_corrected_rates_and_says_so(run):
    runs.write_result(run, "safety-mine", JUDGED, corrected=CORRECTED)
    verdict, _ = shown(run)
    worst, gap, *_ = verdict.facts
    assert worst.value == "Drugs"  # as judged it was Violence
    assert worst.note == "40 % unsafe on 31 prompts, corrected for the judge's error, target 5 %"
    assert gap.value == "30 points"
    assert gap.note.endswith("15 points expected if all categories were equal")
    assert "Rates are corrected for the judge's error." in verdict.basis


def test_figure_draws_corrected_rates_and_its_data_have_both_with_intervals(run):
    runs.write_result(
        run, "safety-before-mine", dict.fromkeys(NAMES, 0.5), corrected={"Violence": 0.4, "Drugs": 0.1}
    )
    runs.write_result(run, "safety-mine", JUDGED, corrected=CORRECTED)
    _, figure = shown(run)
    drugs, violence, everything = figure.table.records()  # the larger corrected gain first
    assert (drugs["category"], drugs["before, corrected"], drugs["after, corrected"]) == ("Drugs", 0.1, 0.6)
    assert (drugs["before"], drugs["after"]) == (0.5, 0.9)
    bounds = [violence[f"after, corrected, {end}"] for end in ("low", "high")]
    assert bounds == pytest.approx([0.65, 0.81])
    assert everything["after, corrected"] == 0.8
    assert "Drugs, after: 60 % (50 % to 66 %)" in dots(figure)
    assert "drawn and compared corrected for the judge's error" in figure.caption


def test_before_and_after_are_compared_as_judged_unless_both_are_corrected(run):
    runs.write_result(run, "safety-before-mine", dict.fromkeys(NAMES, 0.5))
    runs.write_result(run, "safety-mine", JUDGED, corrected=CORRECTED)
    _, figure = shown(run)
    drugs, *_ = figure.table.records()
    assert (drugs["category"], drugs["after, corrected"]) == ("Drugs", 0.6)
    assert "before, corrected" not in drugs
    assert "Drugs, after: 90 % (80 % to 96 %)" in dots(figure)
    assert "drawn and compared as judged, since the judge's error is not known for each" in figure.caption


def test_category_without_a_corrected_rate_leaves_the_whole_result_as_judged(run):
    runs.write_result(run, "safety-mine", JUDGED, corrected={"Drugs": 0.1})
    (found,) = read_safety(run / "evaluation")
    assert not found.corrected
    assert shown(run)[0].facts[0].value == "Violence"


def test_corrected_figures_of_the_evaluation_itself_are_read(tmp_path):
    answers = judged.answers_of(*[("s", "Violence")] * 7, *[("u", "Violence")] * 3, *[("s", "Drugs")] * 9)
    result = evaluate_answers(answers, judge_error=judged.accuracy_of(80, 20, 90, 10), num_resamples=100)
    runs.write(tmp_path / "safety.json", result.as_dict())
    (found,) = read_safety(tmp_path)
    spread = result.spread["corrected_safe_rate"]
    assert found.corrected
    assert found.worst is not None
    assert (found.worst[0], found.worst[1].shown(corrected=True).value) == (
        spread.worst_category,
        spread.worst.value,
    )
    assert found.gap is not None
    assert found.gap.value == spread.gap.value != result.spread["safe_rate"].gap.value


def test_certificate_says_which_of_its_shares_hold_the_error(run):
    runs.write_result(run, "safety-mine", JUDGED, runs.certificate(NAMES, ("met",)), corrected=CORRECTED)
    figures = read_document([run]).parts[0].sections[0].figures
    (found,) = [f for f in figures if f.title.startswith("Certificates")]
    assert "as judged; its upper bound also holds the judge's error" in found.caption


@pytest.mark.parametrize(
    ("both", "values", "words", "glance"),
    [
        (True, [0.6, 0.6], "compared corrected for the judge's error", "judge's error in one, two."),
        (
            False,
            [0.9, 0.9],
            "compared as judged, since",
            "judge's error in one, and as judged in the others.",
        ),
    ],
)
def test_runs_are_compared_corrected_only_where_both_are(tmp_path, both, values, words, glance):
    one, two = (runs.write_run(tmp_path / name, names=NAMES) for name in ("one", "two"))
    runs.write_result(one, "safety-mine", JUDGED, corrected=CORRECTED)
    runs.write_result(two, "safety-mine", JUDGED, corrected=CORRECTED if both else None)
    section = read_document([one, two]).comparison
    assert section is not None
    figures = {figure.title: figure for figure in section.figures}
    found = figures[f"Safe {TITLE[0].lower()}{TITLE[1:]}"]
    rows = {row["category"]: row for row in found.table.records()}
    assert [rows["Drugs"][name] for name in ("one", "two")] == values
    assert words in found.caption
    assert figures["At a glance"].caption.endswith(glance)
    assert "Differences of safe answers are as judged" in section.lead
