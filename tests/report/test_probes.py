"""What the page says of runs whose margins follow judged answers."""

import json
from typing import get_args

import pytest

from jaxalign.evaluation.judges.refusal import RefusalJudge
from jaxalign.evaluation.judges.settings import JudgeConfig
from jaxalign.run.report import read_document
from tests.report import runs

NAMES = ("Violence", "Drugs")
PROBES = {
    2: {"violation/Violence": 0.2, "violation/Drugs": 0.8, "unjudged": 3.0, "share_of_time": 0.2},
    4: {"violation/Violence": 0.5, "violation/Drugs": None, "unjudged": 1.0, "share_of_time": 0.25},
    6: {"violation/Violence": 0.4, "violation/Drugs": 0.1, "unjudged": 0.0, "share_of_time": 0.3},
}


@pytest.fixture
def run(tmp_path):
    workdir = runs.write_run(tmp_path / "run", names=NAMES, num_steps=6, loss="cat_dpo")
    (workdir / "evaluation" / "after.json").unlink()
    return workdir


def sections(workdir):
    (part,) = read_document([workdir]).parts
    return part.verdict, {section.key: section for section in part.sections}


@pytest.mark.parametrize(
    ("signal", "basis", "note", "lead"),
    [
        (
            "probe",
            "Measured on judged answers to the prompts of the probes alone",
            "of answers at probes unsafe",
            "The margins follow the answers at probes alone",
        ),
        (
            "both",
            "Measured on training pairs and judged answers at probes together",
            "of training pairs and answers at probes unsafe",
            "The margins follow training pairs and the answers at probes",
        ),
        (
            "implicit_reward",
            "Measured on training pairs alone",
            "of training pairs unsafe",
            "A pair violates where its reward gap lies below the threshold. While",
        ),
    ],
)
def test_words_say_what_the_margins_followed(run, signal, basis, note, lead):
    runs.add_probes(run, signal, {})
    verdict, found = sections(run)
    assert verdict.basis.startswith(basis)
    assert note in verdict.facts[0].note
    assert found["margins"].lead.startswith(lead)


def test_what_probes_measured_is_shown_by_category_worst_first(run):
    runs.add_probes(run, "probe", PROBES)
    _, found = sections(run)
    shown = found["probes"]
    by_category, each = shown.figures
    assert by_category.table.records() == [
        {"category": "Violence", "probes": 3, "unsafe at first": 0.2, "at last": 0.4, "target": runs.TARGET},
        {"category": "Drugs", "probes": 2, "unsafe at first": 0.8, "at last": 0.1, "target": runs.TARGET},
    ]
    assert "steps 2 to 6" in by_category.caption
    assert by_category.draw is not None
    assert [tuple(row.values()) for row in each.table.records()] == [
        (2, 3.0, 0.2),
        (4, 1.0, 0.25),
        (6, 0.0, 0.3),
    ]
    assert "3 probes, 4 answers not judged; probes took 30 % of the time" in shown.lead


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ({"kind": "refusal"}, f"Judged by the refusal rule. {RefusalJudge.limits}"),
        (
            {"kind": "guard", "path": "models/guard-8b/"},
            "Judged by the guard model guard-8b; its errors are not known",
        ),
        (
            {"kind": "endpoint", "model": "m"},
            "Judged by the endpoint model m; its errors are not known here.",
        ),
        ({"kind": "oracle"}, "Judged by a judge of kind oracle; its errors are not known here."),
    ],
)
def test_judge_of_the_probes_is_named_with_its_limits_wherever_its_figures_are(run, judge, words):
    runs.add_probes(run, "probe", PROBES, judge)
    verdict, found = sections(run)
    assert words in verdict.basis
    assert words in found["probes"].lead
    assert words in found["margins"].lead


def test_verdict_on_pairs_names_no_judge(run):
    verdict, found = sections(run)
    assert "udged by" not in verdict.basis + found["margins"].lead


def test_every_kind_of_judge_has_its_word(run):
    kinds = {
        kind
        for one in get_args(get_args(JudgeConfig)[0])
        for kind in get_args(one.model_fields["kind"].annotation)
    }
    for kind in kinds:
        runs.add_probes(run, "probe", PROBES, {"kind": kind})
        assert "of kind" not in sections(run)[0].basis


def test_run_without_probes_and_one_before_its_first_say_so(run):
    assert "without probes" in sections(run)[1]["probes"].missing[0]
    runs.add_probes(run, "probe", {})
    assert "No probe was made yet" in sections(run)[1]["probes"].missing[0]


def test_margins_that_no_probe_moved_yet_are_those_of_a_loss_with_margins(run):
    runs.add_probes(run, "probe", {})
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{name: line[name] for name in line if not name.startswith("adaptive/")} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    margins = sections(run)[1]["margins"]
    assert "no margins" not in margins.lead
    assert "The margins have not moved yet" in margins.lead
    assert "means over batches of training pairs" in margins.lead
    assert {row["target"] for row in margins.figures[0].table.records()} == {
        None
    }  # of answers, not of these pairs
    runs.write_result(run, "safety-mine", dict.fromkeys(NAMES, 0.9))
    assert sections(run)[0].facts[0].note.endswith("target 5 %")


def seconds(workdir, figures):
    runs.add_probes(workdir, "probe", figures)
    _, found = sections(workdir)
    (numbers,) = [figure for figure in found["course"].figures if figure.title == "In numbers"]
    return dict(numbers.table.rows)["seconds in probes"], numbers.caption


def test_seconds_of_each_probe_are_summed_over_resumptions(run):
    # killed after 0.5 s, then a probe of 0.9 s: the running total tells nothing of it
    figures = {2: {"seconds": 0.5, "seconds_taken": 0.5}, 4: {"seconds": 0.9, "seconds_taken": 0.9}}
    total, caption = seconds(run, figures)
    assert total == pytest.approx(1.4)
    assert caption == ""


def test_log_with_running_totals_alone_says_that_seconds_may_be_missing(run):
    total, caption = seconds(run, {2: {"seconds": 0.5}, 4: {"seconds": 0.9}, 6: {"seconds": 0.1}})
    assert total == pytest.approx(1.0)
    assert "at least so many seconds were spent in probes" in caption
