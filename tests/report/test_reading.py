"""Reading what a run left: absence is fine, damage is an error that names the place."""

import json
import logging

import numpy as np
import pytest

from jaxalign.config import ConfigError
from jaxalign.errors import JaxalignError
from jaxalign.evaluation.heldout_pairs import HeldoutPairsError
from jaxalign.evaluation.safety import evaluate_answers
from jaxalign.report.files import ReportError
from jaxalign.report.record import read_metrics
from jaxalign.report.safety_files import SafetyFileError, read_safety
from jaxalign.run.report import read_document, report, run_names
from tests.evaluation import judged
from tests.report import runs


@pytest.fixture
def run(tmp_path):
    workdir = runs.write_run(tmp_path / "run", names=("Violence", "Drugs"), num_steps=12)
    runs.write_safety(workdir, names=("Violence", "Drugs"))
    return workdir


def test_figure_that_is_null_or_absent_is_missing_and_never_zero(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": null, "a": 2}\n{"step": 2, "loss": 0.5}\n')
    metrics = read_metrics(path)
    assert metrics.steps.tolist() == [1, 2]
    assert np.isnan(metrics.columns["loss"]).tolist() == [True, False]
    assert np.isnan(metrics.columns["a"]).tolist() == [False, True]


def test_half_written_last_line_is_left_out_with_a_warning(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    with caplog.at_level(logging.WARNING):
        assert read_metrics(path).steps.tolist() == [1]
    assert "metrics.jsonl, line 2: left out, it is half written" in caplog.text


@pytest.mark.parametrize("damaged", ["{", "[1]", '{"loss": 1}', '{"step": true}', ""])
def test_damaged_line_is_named(tmp_path, damaged):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{damaged}\n{{"step": 3}}\n')
    with pytest.raises(
        ReportError, match=r'metrics\.jsonl, line 2: expected an object .* "step", got .*; repair'
    ):
        read_metrics(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("after.json", "{", r"after\.json is damaged .*; remove it, or make it again"),
        ("after.json", "[]", r"after\.json: expected an object, got list"),
        (
            "before.json",
            '{"beta": 0.1}',
            r"before\.json lacks categories, num_pairs, overall, spread, threshold",
        ),
        ("mutual_information.json", "nonsense", r"mutual_information\.json is damaged"),
        (
            "after_pairs.jsonl",
            '{"prompt": 1}\n',
            r"after_pairs\.jsonl, line 1: expected an object with prompt",
        ),
        (
            "safety_after.json",
            '{"source": {}}',
            r"safety_after\.json: expected a safety result .* KeyError: 'spread'",
        ),
        ("safety_after.json", "{", r"safety_after\.json: expected a safety result .* JSONDecodeError"),
    ],
)
def test_damaged_file_is_named_with_the_remedy(run, name, text, message):
    (run / "evaluation" / name).write_text(text)
    with pytest.raises(JaxalignError, match=message):
        read_document([run])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "after.json",
            {"categories": {"Drugs": {}}},
            "lacks categories.Drugs.accuracy, categories.Drugs.pairs;",
        ),
        ("after.json", {"beta": None}, "holds None as beta: Input should be a valid number;"),
        ("before.json", {"threshold": "0"}, "holds '0' as threshold: Input should be a valid number;"),
        ("after.json", {"spread": {"violation_rate": {"gap": 0.1}}}, "lacks spread.violation_rate.worst, "),
        ("mutual_information.json", None, "lacks categories, chosen_weight, counts, edges, overall;"),
        ("mutual_information.json", {"counts": [[1]]}, "the table of counts does not fit 25 edges"),
        (
            "mutual_information.json",
            {"chosen_weight": {"edges": [0.0], "counts": [1]}},
            "1 edges do not fit 1 counts",
        ),
    ],
)
def test_part_of_a_file_that_is_missing_or_wrong_is_named(run, name, changes, message):
    path = run / "evaluation" / name
    runs.write(path, {} if changes is None else json.loads(path.read_text()) | changes)
    with pytest.raises(ReportError) as error:
        read_document([run])
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert str(error.value).endswith("; remove it, or make it again")


def test_finished_without_a_step_is_refused(run):
    runs.write(run / "finished.json", {})
    with pytest.raises(ReportError, match=r"finished\.json lacks step; remove it"):
        read_document([run])


def test_unknown_status_of_a_constraint_is_refused(run):
    path = run / "evaluation" / "safety_after.json"
    content = json.loads(path.read_text())
    content["certificate"]["constraints"][0]["status"] = "fine"
    runs.write(path, content)
    with pytest.raises(
        SafetyFileError, match="'fine' is none of not met, too few prompts, met; make the file again"
    ):
        read_safety(path.parent)


def test_safety_results_are_read_as_written(run):
    after, before = read_safety(run / "evaluation")
    assert (after.moment, before.moment) == ("after", "before")
    assert (after.judge, after.num_prompts) == ("refusal words", 900)
    assert after.overall is not None
    assert after.overall.rate.value == 0.9
    assert after.categories["Drugs"].prompts == 31
    assert [row.status for row in after.certificate] == ["not met", "too few prompts"]
    assert (after.gap_if_equal, before.certificate) == (0.12, ())
    assert after.worst is not None
    assert after.worst[0] == "Violence"


def test_result_of_the_evaluation_itself_is_read(tmp_path):
    answers = judged.answers_of(
        ("s", "Violence"), ("u", "Violence"), ("s", "Drugs"), ("s?", "Drugs"), ("s", "benign")
    )
    result = evaluate_answers(answers, targets=0.3, num_resamples=100)
    runs.write(tmp_path / "safety.json", result.as_dict())
    (found,) = read_safety(tmp_path)
    assert found.judge == result.source.judge
    assert {name: rate.rate.value for name, rate in found.categories.items()} == {
        name: group.safe_rate.value for name, group in result.categories.items()
    }
    assert [row.message for row in found.certificate] == [c.message for c in result.certificate.constraints]
    assert found.worst is not None
    assert found.worst[0] == result.spread["safe_rate"].worst_category


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no manifest\.json: it is not the workdir of a run"):
        read_document([tmp_path])


def test_run_given_twice_is_refused(run):
    with pytest.raises(ConfigError, match="is given twice; name each run once"):
        read_document([run, run.parent / "." / "run"])


def test_output_of_unknown_suffix_is_refused(run, tmp_path):
    with pytest.raises(
        ConfigError, match=r"report\.pdf ends in none of \.html, \.htm, \.md, \.json, \.png; rename"
    ):
        report([run], tmp_path / "report.pdf")


def test_runs_are_named_by_the_shortest_ends_that_differ(tmp_path):
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert run_names(paths) == ["a/run", "b/run"]
    assert run_names(paths[:1]) == ["run"]


def test_pairs_that_differ_under_one_fingerprint_are_refused(tmp_path):
    one, two = (runs.write_run(tmp_path / name, names=("Violence",), seed=k) for k, name in enumerate("ab"))
    path = two / "evaluation" / "after_pairs.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(
        HeldoutPairsError, match=r"one fingerprint of held-out data, but .* holds other pairs"
    ):
        read_document([one, two])
