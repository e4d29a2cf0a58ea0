"""The confusion of a judge on labelled answers."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binomtest

from jaxalign.data.schema import DataError
from jaxalign.evaluation.calibration import Calibration, calibrate, wilson_interval
from jaxalign.evaluation.judges.function import FunctionJudge
from jaxalign.evaluation.labelled import read_labelled
from jaxalign.run.calibration import print_calibration


def lengths(prompts: Any, responses: Any) -> list[float]:
    """Unsafe from five letters on; unjudged where blank."""
    return [math.nan if not text.strip() else float(len(text) >= 5) for text in responses]


JUDGE = FunctionJudge(lengths, "lengths")
ROWS = [
    {"prompt": "p", "response": "long answer", "unsafe": 1, "category": "Drugs"},
    {"prompt": "P ", "response": "no", "unsafe": 1, "category": "Drugs"},
    {"prompt": "q", "response": "no", "unsafe": 0, "category": "Drugs"},
    {"prompt": "r", "response": "", "unsafe": 1, "category": "Violence"},
    {"prompt": "s", "response": "long answer", "unsafe": False, "category": "Violence"},
    {"prompt": "t", "response": " ", "unsafe": "false"},
]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    file = tmp_path / "labelled.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def test_every_answer_is_counted_once_by_label_and_judgement(labelled):
    found = calibrate(JUDGE, labelled)
    assert vars_of(found.overall) == (1, 1, 1, 1, 1, 1)
    assert {name: vars_of(c) for name, c in found.categories.items()} == {
        "Drugs": (1, 1, 1, 0, 0, 0),
        "Violence": (0, 0, 0, 1, 1, 0),
        "(none)": (0, 0, 0, 0, 0, 1),
    }
    assert found.num_prompts == 5  # p is there twice
    assert (found.judge, found.file) == ("function lengths", "labelled.jsonl")
    assert found.limits == JUDGE.limits


def vars_of(confusion: Any) -> tuple[int, ...]:
    return (
        confusion.unsafe_judged_unsafe,
        confusion.unsafe_judged_safe,
        confusion.safe_judged_safe,
        confusion.safe_judged_unsafe,
        confusion.unsafe_unjudged,
        confusion.safe_unjudged,
    )


def test_rates_are_over_the_judged_answers(labelled):
    found = calibrate(JUDGE, labelled)
    assert found.overall.sensitivity == 0.5
    assert found.categories["Drugs"].specificity == 1.0
    assert found.categories["Violence"].sensitivity is None
    assert found.categories["Violence"].sensitivity_interval == (0.0, 1.0)
    assert found.overall.num_answers == len(ROWS)


def test_a_calibration_of_an_earlier_version_has_a_name_alone(labelled):
    values = calibrate(JUDGE, labelled).as_dict()
    del values["judge_fingerprint"]
    assert Calibration.from_dict(values).judge_fingerprint is None


def test_a_calibration_survives_json(labelled):
    found = calibrate(JUDGE, labelled)
    values = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert Calibration.from_dict(values) == found
    assert values["overall"]["sensitivity"] == 0.5
    assert len(values["overall"]["specificity_interval"]) == 2


@pytest.mark.parametrize("changes", [{"overall": {}}, {"num_prompts": -1}, {"categories": None}])
def test_what_is_no_calibration_is_refused(changes, labelled):
    values = calibrate(JUDGE, labelled).as_dict() | changes
    with pytest.raises(ValueError, match=r"no calibration of a judge .*evaluate --calibrate"):
        Calibration.from_dict(values)


def test_csv_and_jsonl_hold_the_same_labels(labelled, tmp_path):
    file = tmp_path / "labelled.csv"
    lines = [
        f"{r['prompt']},{r['response']},{str(r['unsafe']).lower()},{r.get('category', '')}" for r in ROWS
    ]
    file.write_text("prompt,response,unsafe,category\n" + "\n".join(lines) + "\n")
    assert read_labelled(file) == read_labelled(labelled)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"unsafe": 2}, "field 'unsafe': wrong type: got int 2, expected 0 or 1, true or false"),
        ({"unsafe": None}, "field 'unsafe': missing field"),
        ({"response": 3}, "field 'response': wrong type: got int 3, expected a text"),
        ({"response": "\ud800"}, "field 'response': lone surrogate"),
        ({"prompt": " "}, "field 'prompt': empty text"),
        ({"category": ["a"]}, "field 'category': wrong type"),
        ({"category": "all"}, "field 'category': reserved name: got all, expected another name"),
    ],
)
def test_a_wrong_row_is_named(changes, error, tmp_path):
    file = tmp_path / "labelled.jsonl"
    file.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1] | changes) + "\n")
    with pytest.raises(DataError, match=rf"labelled\.jsonl:2: {error}") as raised:
        read_labelled(file)
    assert str(raised.value).endswith("; correct the row")


def test_a_row_without_an_answer_is_named(tmp_path):
    file = tmp_path / "labelled.jsonl"
    file.write_text(json.dumps({"prompt": "p", "unsafe": 1}) + "\n")
    with pytest.raises(
        DataError, match=r"missing field: got only the fields .*name the columns prompt, response, unsafe"
    ):
        read_labelled(file)


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (7, 7), (1, 2), (3, 40), (399, 400)])
def test_interval_is_that_of_scipy(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson_interval(successes, trials), expected, rtol=1e-9, atol=1e-12)


def test_interval_covers_a_rate_about_as_often_as_it_says():
    rate, trials = 0.2, 50
    intervals = [wilson_interval(k, trials) for k in range(trials + 1)]
    probs = [math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(trials + 1)]
    covered = sum(p for p, (low, high) in zip(probs, intervals, strict=True) if low <= rate <= high)
    assert 0.93 < covered < 0.97


def test_a_narrow_table_loses_nothing(tmp_path):
    file, name = tmp_path / "labelled.jsonl", "Discrimination and injustice of all kinds"
    rows = [{"prompt": f"p{i}", "response": "long answer", "unsafe": 1, "category": name} for i in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    console = Console(width=80, record=True, file=io.StringIO())
    print_calibration(calibrate(JUDGE, file), console)
    table = console.export_text().split("function lengths judges")[0]
    assert "\u2026" not in table
    assert "0.84" in table  # the lower end of the interval
    first_column = "".join(line[:13].strip() for line in table.splitlines())
    assert name.replace(" ", "") in first_column.replace(" ", "")


def test_rows_that_repeat_are_counted_and_warned_of(labelled, caplog):
    with labelled.open("a") as file:
        file.write(json.dumps(ROWS[0] | {"prompt": " P"}) + "\n")
    assert calibrate(JUDGE, labelled).overall.num_answers == 7
    assert "1 rows repeat an earlier prompt and response" in caplog.text


def test_table_has_a_row_a_category_and_the_limits(labelled):
    console = Console(width=120, record=True, file=io.StringIO())
    print_calibration(calibrate(JUDGE, labelled), console)
    text = console.export_text()
    assert "function lengths on 6 answers to 5 prompts" in text
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert lines["Drugs"][:5] == ["1", "1", "1", "0", "0"]
    assert lines["Violence"][:6] == ["0", "0", "0", "1", "1", "-"]
    assert lines["all"][:6] == ["1", "1", "1", "1", "2", "0.50"]
    assert "nothing is known of its errors until it is calibrated" in " ".join(text.split())
