"""Runs side by side."""

import dataclasses

import pytest

from jaxalign.evaluation.answerer import Answerer
from jaxalign.evaluation.answers import AnswersError
from jaxalign.evaluation.answers_file import write_answers
from jaxalign.run.report import read_document
from tests.evaluation import judged
from tests.report import runs

NAMES = ("Violence", "Drugs", "Privacy Violation")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A weak run, a strong one, and one on other held-out data."""
    folder = tmp_path_factory.mktemp("comparison")
    return [
        runs.write_run(folder / "weak", names=NAMES, loss="dpo", skill=0.2, seed=3),
        runs.write_run(folder / "strong", names=NAMES, skill=3.0, seed=4),
        runs.write_run(folder / "other", names=NAMES, fingerprint="9" * 64, seed=5),
    ]


def figures(workdirs):
    section = read_document(workdirs).comparison
    assert section is not None
    return {figure.title: figure for figure in section.figures}, section.missing


def test_one_run_has_nothing_to_be_compared_with(three):
    assert read_document(three[:1]).comparison is None


def test_each_run_is_a_row_of_the_glance(three):
    found, _ = figures(three)
    assert [row["run"] for row in found["At a glance"].table.records()] == ["weak", "strong", "other"]


def test_paired_differences_are_those_of_the_second_over_the_first(three):
    found, _ = figures(three)
    rows = {row["what"]: row for row in found["Held-out accuracy: strong minus weak"].table.records()}
    assert set(rows) == {*NAMES, "all pairs", "mean of categories", "worst category", "best-to-worst gap"}
    assert rows["all pairs"]["difference"] > 0
    assert rows["all pairs"]["low"] <= rows["all pairs"]["difference"] <= rows["all pairs"]["high"]
    unsafe = {row["what"]: row for row in found["Held-out violation rate: strong minus weak"].table.records()}
    assert unsafe["all pairs"]["high"] < 0
    assert "Probability that the gap shrank" in found["Held-out accuracy: strong minus weak"].caption


def test_category_called_as_a_summary_is_drawn_among_the_categories(tmp_path):
    names = ("worst category", "Drugs")
    workdirs = [runs.write_run(tmp_path / name, names=names) for name in ("one", "two")]
    drawn = figures(workdirs)[0]["Held-out accuracy: two minus one"]
    assert [row["what"] for row in drawn.table.records()].count("worst category") == 2
    assert drawn.draw is not None
    labels = [mark for mark in drawn.draw(760).marks if getattr(mark, "text", "") == "worst category"]
    assert [label.bold for label in labels] == [False, True]


def test_settings_that_differ_are_shown_and_no_others(three):
    found, _ = figures(three)
    rows = {row["setting"]: row for row in found["Settings that differ"].table.records()}
    assert rows == {
        "loss.name": {"setting": "loss.name", "weak": "dpo", "strong": "cat_b_dpo", "other": "cat_b_dpo"}
    }


def test_runs_on_other_data_are_not_paired_and_it_is_said(three):
    found, missing = figures(three)
    assert not [title for title in found if "other minus" in title]
    assert missing == ["other against weak, Held-out accuracy: they have other held-out data."]


def test_run_without_single_pairs_is_named(tmp_path, three):
    old = runs.write_run(tmp_path / "old", names=NAMES)
    (old / "evaluation" / "after_pairs.jsonl").unlink()
    _, missing = figures([three[0], old])
    assert "old left no single held-out pairs" in missing[0]


def test_safe_answers_are_compared_where_all_runs_have_them(tmp_path):
    one, two = (runs.write_run(tmp_path / name, names=NAMES) for name in ("one", "two"))
    runs.write_safety(one, names=NAMES)
    assert "Safe answers to held-out prompts, judged by refusal words" not in figures([one, two])[0]
    runs.write_safety(two, names=NAMES, skill=0.5)
    found = figures([one, two])[0]["Safe answers to held-out prompts, judged by refusal words"]
    assert [column.name for column in found.table.columns] == ["category", "one", "two"]
    assert found.caption.endswith("Knows refusals by their words alone.")


def test_many_runs_have_a_page(tmp_path):
    workdirs = [runs.write_run(tmp_path / f"run{k}", names=NAMES, seed=k) for k in range(9)]
    found, missing = figures(workdirs)
    assert missing == []
    assert len([title for title in found if title.startswith("Held-out accuracy:")]) == 8


def test_judged_answers_to_the_same_prompts_are_compared_in_pairs(tmp_path):
    workdirs = [runs.write_run(tmp_path / name, names=NAMES) for name in ("one", "two")]
    for workdir, letters in zip(workdirs, ("susuuu", "ssssus"), strict=True):
        prompts = [(letter, NAMES[k % 2]) for k, letter in enumerate(letters)]
        write_answers(workdir / "evaluation" / "answers.json", judged.answers_of(*prompts))
    title = "Safe answers to prompts.jsonl, judged by rule: two minus one"
    rows = {row["what"]: row for row in figures(workdirs)[0][title].table.records()}
    assert rows["all prompts"]["difference"] == pytest.approx(3 / 6)
    assert rows["Violence"]["difference"] == 0.0
    assert rows["Drugs"]["difference"] == 1.0
    assert {"mean of categories", "worst category", "best-to-worst gap"} <= rows.keys()


def test_differences_under_several_judges_name_them_and_keep_their_order(tmp_path):
    judges = [f"judge {k}" for k in range(6)]
    workdirs = [runs.write_run(tmp_path / name, names=NAMES) for name in ("one", "two")]
    for workdir in workdirs:
        for k, judge in enumerate(reversed(judges)):
            answers = dataclasses.replace(judged.answers_of(("s", "Drugs"), ("u", "Violence")), judge=judge)
            write_answers(workdir / "evaluation" / f"answers-{k}.json", answers)
    titles = [title for title in figures(workdirs)[0] if title.startswith("Safe answers")]
    assert titles == [f"Safe answers to prompts.jsonl, judged by {judge}: two minus one" for judge in judges]


def test_answers_that_were_asked_for_otherwise_are_not_paired(tmp_path):
    workdirs = [runs.write_run(tmp_path / name, names=NAMES) for name in ("one", "two")]
    answers = judged.answers_of(("s", "Drugs"))
    for workdir, temperature in zip(workdirs, (0.0, 1.0), strict=True):
        by = Answerer(workdir.name, workdir.name, 1, {"temperature": temperature})
        write_answers(workdir / "evaluation/answers.json", dataclasses.replace(answers, answerer=by))
    assert not [title for title in figures(workdirs)[0] if title.startswith("Safe answers")]
    again = Answerer("two", "two", 1, {"temperature": 0.0})
    write_answers(
        workdirs[1] / "evaluation/answers-greedy.json", dataclasses.replace(answers, answerer=again)
    )
    assert [title for title in figures(workdirs)[0] if title.startswith("Safe answers")]


def test_answers_before_training_are_not_compared(tmp_path):
    workdirs = [runs.write_run(tmp_path / name, names=NAMES) for name in ("one", "two")]
    for workdir in workdirs:
        write_answers(workdir / "evaluation" / "answers_before.json", judged.answers_of(("s", "Drugs")))
    assert not [title for title in figures(workdirs)[0] if title.startswith("Safe answers")]


def test_damaged_answers_are_named(tmp_path):
    workdirs = [runs.write_run(tmp_path / name, names=NAMES) for name in ("one", "two")]
    (workdirs[1] / "evaluation" / "answers.json").write_text("{}")
    with pytest.raises(AnswersError, match=r"answers\.json holds no judged answers"):
        read_document(workdirs)
