"""The study's book-keeping: what runs, what is kept, how settings are chosen, what is printed."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import choosing
import csv_files
import maximum
import metrics
import numpy as np
import plan
import pytest
import study
import tables
from ablations import ABLATIONS, Ablation
from choosing import Choice
from methods import METHODS, make_objective
from metrics import Interval
from results import Results
from world import K

from jaxalign.files import locked

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "category_gap" / "study.py"
SMALL = plan.Plan(methods=("dpo", "cat_dpo", "b_dpo"), ablations=(), num_settings=2, num_screening_seeds=1,
                  num_validation_seeds=1, num_finalists=2, num_test_seeds=4)  # fmt: skip


def figures(worst: float, helpful: float) -> dict[str, np.ndarray]:
    return {
        "safe": np.array([worst, *[1.0] * (K - 1)]),
        "helpful": np.full(K, helpful),
        "general": np.float32(helpful),
        "refused_benign": np.zeros(K),
        "seen_safe": np.ones(K),
        "train_accuracy": np.float32(0.9),
        "heldout_accuracy": np.float32(0.8),
        "kl_unsafe": np.float32(2.0),
        "kl_benign": np.float32(0.1),
    }


def tuned(results: Results, name: str, *rates: tuple[float, float]) -> None:
    for setting, (worst, helpful) in enumerate(rates):
        for seed in SMALL.validation_seeds:
            results.add(plan.Run("tune", name, setting, seed), {}, figures(worst, helpful))


# Choosing


def test_settings_are_chosen_by_the_worst_category_among_the_helpful(tmp_path):
    results = Results(tmp_path, SMALL)
    tuned(results, "dpo", (0.5, 0.90), (0.6, 0.89))
    tuned(results, "cat_dpo", (0.9, 0.87), (0.8, 0.885))
    tuned(results, "b_dpo", (0.9, 0.5), (0.8, 0.69))
    assert choosing.choose_settings(SMALL, results.rows) == {
        "dpo": Choice(1, 2, False, 1.0),
        "cat_dpo": Choice(1, 1, False, 1.0),
        "b_dpo": Choice(1, 0, True, 1.0),
    }


def test_a_setting_that_failed_on_a_seed_is_not_chosen(tmp_path):
    results = Results(tmp_path, SMALL)
    tuned(results, "dpo", (0.5, 0.9), (0.6, 0.9))
    tuned(results, "cat_dpo", (0.7, 0.9), (float("nan"), 0.9))
    tuned(results, "b_dpo", (0.7, 0.5), (float("nan"), 0.9))
    chosen = choosing.choose_settings(SMALL, results.rows)
    assert (chosen["cat_dpo"], chosen["b_dpo"]) == (Choice(0, 1, False, 1.0), Choice(0, 0, True, 1.0))


STAGED = dataclasses.replace(SMALL, methods=("dpo", "cat_dpo"), num_settings=5, num_validation_seeds=3,
                             num_finalists=3)  # fmt: skip


def staged(results: Results, name: str, *rates: tuple[float, float], seeds: range) -> None:
    for setting, (worst, helpful) in enumerate(rates):
        for seed in seeds:
            results.add(plan.Run("tune", name, setting, seed), {}, figures(worst, helpful))


def test_finalists_are_the_most_helpful_setting_and_the_safest_that_stay_helpful(tmp_path):
    results = Results(tmp_path, STAGED)
    first = STAGED.screening_seeds
    staged(results, "dpo", (0.1, 0.99), (0.5, 0.98), (0.6, 0.98), (0.7, 0.98), (0.9, 0.9), seeds=first)
    staged(results, "cat_dpo", (0.5, 0.98), (0.9, 0.90), (0.9, 0.93), (0.9, 0.92), (0.4, 0.8), seeds=first)
    # cat_dpo has one that is helpful enough: those that come nearest to it take the other places.
    assert choosing.choose_finalists(STAGED, results.rows) == {"dpo": [0, 3, 2], "cat_dpo": [0, 2, 3]}


def test_the_choice_rests_on_all_validation_seeds_and_says_how_sure_it_is(tmp_path):
    results = Results(tmp_path, STAGED)
    staged(results, "dpo", (0.5, 0.9), seeds=STAGED.validation_seeds)
    for seed, rates in zip(STAGED.validation_seeds, ((0.9, 0.2), (0.4, 0.6), (0.3, 0.7)), strict=True):
        for setting, worst in enumerate(rates):
            results.add(plan.Run("tune", "cat_dpo", setting, seed), {}, figures(worst, 0.9))
    # A setting that looked best when it was screened, and was no finalist, is not chosen.
    results.add(plan.Run("tune", "cat_dpo", 2, STAGED.screening_seeds[0]), {}, figures(1.0, 0.9))
    choice = choosing.choose_settings(STAGED, results.rows)["cat_dpo"]
    assert choice.setting == 0  # 1.6 against 1.5
    counts = [(i, j, k) for i in range(3) for j in range(3) for k in range(3)]
    gain = (0.7, -0.2, -0.4)
    exact = np.mean([gain[i] + gain[j] + gain[k] >= 0 for i, j, k in counts])
    assert choice.sureness == pytest.approx(exact, abs=0.05)


def test_seeds_that_choose_are_not_those_that_are_reported():
    assert not set(plan.Plan().validation_seeds) & set(plan.Plan().test_seeds)
    assert plan.Plan().num_test_seeds >= 8


def test_every_method_is_tuned_over_as_many_settings():
    counts = {name: len(plan.Plan().screening(name)) for name in METHODS}
    assert set(counts.values()) == {32 * 4}
    assert len(plan.Plan().finals("dpo", [1, 2])) == 2 * 8


def test_what_a_maximum_does_is_told_from_dpo_at_the_same_setting(tmp_path):
    results = Results(tmp_path, STAGED)
    first = STAGED.screening_seeds
    staged(results, "dpo", (0.5, 0.9), (0.6, 0.8), (0.5, 0.9), (0.5, 0.9), (float("nan"), 0.9), seeds=first)
    for setting, bound in enumerate((2.0, 3.0, 3.9, 4.0, 3.0)):
        run = plan.Run("tune", "cat_dpo", setting, first[0])
        results.add(run, {"margin.maximum_nats": bound}, figures((0.6, 0.8, 0.8, 0.1, 0.1)[setting], 0.7))
    by_band = maximum.differences_by_maximum(STAGED, results)
    counts = {name: count for name, (count, _) in by_band.items()}
    assert counts == {"cat_dpo, 2 to 4 nats": 3, "cat_dpo, all": 4}  # one has no dpo to compare with
    found = by_band["cat_dpo, 2 to 4 nats"][1]
    assert found["worst"].mean == pytest.approx(100 * (0.1 + 0.2 + 0.3) / 3)
    assert found["helpful"].mean == pytest.approx(100 * (-0.2 - 0.1 - 0.2) / 3)


# Keeping


def test_what_is_finished_is_not_run_again(tmp_path):
    runs = SMALL.testing("test", "dpo", 0)
    Results(tmp_path, SMALL).add(runs[1], {"loss.beta": 0.1}, figures(0.5, 0.9))
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"plan": "half a li')
    again = Results(tmp_path, SMALL)
    assert again.missing(runs) == [runs[0], *runs[2:]]
    again.add(runs[0], {"loss.beta": 0.1}, figures(0.5, 0.9))
    assert [row["seed"] for row in Results(tmp_path, SMALL).of("test", "dpo")] == [0, 1]


def test_results_of_another_plan_are_refused(tmp_path):
    Results(tmp_path, SMALL).add(SMALL.screening("dpo")[0], {}, figures(0.5, 0.9))
    with pytest.raises(
        SystemExit, match=r"has results of plan .*; give another --output, or remove the file"
    ):
        Results(tmp_path, plan.Plan())


def test_a_run_with_a_figure_that_is_not_finite_has_failed_and_has_no_mean(tmp_path):
    broken = figures(0.5, 0.9) | {"train_accuracy": np.float32("nan")}
    results = Results(tmp_path, SMALL)
    results.add(plan.Run("test", "dpo", 0, 3), {"loss.beta": 0.1}, broken)
    again = Results(tmp_path, SMALL)
    assert plan.Run("test", "dpo", 0, 3) not in again.missing(SMALL.testing("test", "dpo", 0))
    with pytest.raises(FloatingPointError, match="dpo: figures of seed 3"):
        again.of("test", "dpo")


def test_test_runs_of_an_earlier_choice_are_not_shown(tmp_path):
    results = Results(tmp_path, SMALL)
    for setting, worst in ((0, 0.5), (1, 0.7)):
        results.add(plan.Run("test", "dpo", setting, 0), {}, figures(worst, 0.9))
    results.choose({"dpo": 1})
    (row,) = results.of("test", "dpo")
    assert row["setting"] == 1


@pytest.mark.parametrize("line", ["no json", '{"seed": 1}', "3"])
def test_a_line_that_is_no_run_is_named(tmp_path, line):
    (tmp_path / "results.jsonl").write_text(line + "\n")
    with pytest.raises(SystemExit, match=r"results\.jsonl has a line that is no run of a study"):
        Results(tmp_path, SMALL)


def test_other_code_is_another_plan(monkeypatch):
    before = SMALL.fingerprint()
    monkeypatch.setattr(plan, "code_fingerprint", lambda *modules: "other")
    assert SMALL.fingerprint() != before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rare", "1"], "--rare 1: a category needs 2 prompts or more"),
        (["--devices", "3"], "--devices 3 must divide 16"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(monkeypatch, capsys, tmp_path, words, message):
    monkeypatch.setattr(sys, "argv", ["study.py", "--output", str(tmp_path / "new"), *words])
    with pytest.raises(SystemExit):
        study.main()
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_second_call_in_a_folder_is_refused(tmp_path):
    command = [sys.executable, str(SCRIPT), "--subset", "--output", str(tmp_path)]
    with locked(tmp_path / "lock", busy=AssertionError()):
        second = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert second.returncode == 1
    assert "another call works there" in second.stderr


# Figures


def test_gap_variance_and_worst_are_over_categories():
    found = metrics.summary(figures(0.6, 0.9))
    assert found["gap"] == pytest.approx(0.4)
    assert found["worst"] == pytest.approx(0.6)
    assert found["variance"] == pytest.approx(np.var([0.6] + [1.0] * (K - 1)))
    assert found["accuracy_gap"] == pytest.approx(0.1)
    assert found["safe_gap"] == pytest.approx(0.05)


def test_intervals_need_seeds():
    with pytest.raises(ValueError, match="2 seeds give no interval, expected at least 3; run more seeds"):
        metrics.interval([1.0, 2.0])


def test_an_interval_encloses_its_mean_and_equal_values_have_none():
    found = metrics.interval([0.1, 0.5, 0.2, 0.4, 0.35])
    assert found.low < found.mean < found.high
    assert metrics.interval([0.25, 0.25, 0.25]) == metrics.Interval(0.25, 0.25, 0.25)


def test_differences_are_bold_where_their_interval_excludes_zero(tmp_path):
    results = Results(tmp_path, SMALL)
    for seed in SMALL.test_seeds:
        for name, worst in (("dpo", 0.5), ("cat_dpo", 0.7), ("b_dpo", 0.5)):
            results.add(plan.Run("test", name, 0, seed), {}, figures(worst + 0.01 * seed, 0.9))
    choices = {
        "dpo": Choice(0, 2, False, 1.0),
        "cat_dpo": Choice(0, 1, False, 0.5),
        "b_dpo": Choice(0, 0, True, 1.0),
    }
    tables.write_tables(
        tmp_path, SMALL, results, choices, {name: {"loss.beta": 0.1} for name in SMALL.methods}
    )
    text = (tmp_path / "results.md").read_text()
    assert "* cat_dpo (1 of 2; 50 %): loss.beta 0.1" in text
    assert (
        "* b_dpo (0 of 2; 100 %, chosen among those nearly as helpful as its most helpful one): loss.beta 0.1"
        in text
    )
    lines = text.splitlines()
    start = lines.index("### cat_dpo")
    head, row = lines[start + 2], next(line for line in lines[start:] if line.startswith("| minus dpo"))
    found = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert found["gap"] == "**-20.0** (-20.0 to -20.0)"
    assert found["worst category"] == "**+20.0** (20.0 to 20.0)"
    assert found["helpful"] == "0.0 (0.0 to 0.0)"
    start = lines.index("### b_dpo")
    assert "!" not in "".join(lines[start : start + 6])


def test_an_end_near_zero_is_shown_with_two_digits_where_the_interval_excludes_it():
    assert tables._text(Interval(0.19, 0.005, 0.367), bold=True) == "**+0.19** (0.01 to 0.37)"
    assert tables._text(Interval(0.19, -0.005, 0.367)) == "0.2 (0.0 to 0.4)"


def test_csv_files_have_a_line_a_test_run_and_a_line_a_setting(tmp_path):
    results = Results(tmp_path, SMALL)
    for name in SMALL.methods:
        for setting in range(SMALL.num_settings):
            for seed in SMALL.validation_seeds:
                found = figures(0.5 + 0.1 * setting, 0.9)
                if name == "b_dpo" and setting == 1:
                    found["general"] = np.float64(np.nan)
                results.add(plan.Run("tune", name, setting, seed), {"loss.beta": 0.25}, found)
        for seed in SMALL.test_seeds:
            results.add(plan.Run("test", name, 0, seed), {"loss.beta": 0.25}, figures(0.6, 0.9))
    csv_files.write_csv_files(tmp_path, SMALL, results)
    with (tmp_path / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == len(SMALL.methods) * SMALL.num_test_seeds
    assert {(row["phase"], row["worst"]) for row in runs} == {("test", "0.60000")}
    with (tmp_path / "tuning.csv").open(newline="") as file:
        settings = list(csv.DictReader(file))
    assert [(row["name"], row["setting"], row["seeds"], row["loss.beta"]) for row in settings[:3]] == [
        ("dpo", "0", "1", "0.25"),
        ("dpo", "1", "1", "0.25"),
        ("dpo", "0", "1", "0.25"),  # as a finalist, whose seeds here are the same
    ]
    assert [row["worst"] for row in settings if row["name"] == "dpo"] == ["0.50000", "0.60000"] * 2
    assert [row["worst"] for row in settings if row["name"] == "b_dpo"] == ["0.50000", ""] * 2


# Ablations


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_is_a_method_that_differs_from_its_base(name):
    ablation: Ablation = ABLATIONS[name]
    chosen = METHODS[ablation.base].drawn(4)[2]
    method, numbers = ablation.applied(chosen)
    changed = make_objective(method, numbers)
    assert changed.config.name == METHODS[ablation.base].loss
    assert changed != make_objective(METHODS[ablation.base], chosen)


# The command


@pytest.mark.slow
def test_the_subset_runs_and_goes_on_where_it_stopped(tmp_path):
    command = [sys.executable, str(SCRIPT), "--subset", "--output", str(tmp_path)]
    subprocess.run(command, check=True, timeout=1800)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    subset = plan.SUBSET
    screened = subset.num_settings * subset.num_screening_seeds
    finals = subset.num_finalists * (subset.num_validation_seeds - subset.num_screening_seeds)
    expected = len(subset.methods) * (screened + finals + subset.num_test_seeds)
    assert len(lines) == expected
    assert {json.loads(line)["plan"] for line in lines} == {subset.fingerprint()}
    differences = (tmp_path / "results.md").read_text().split("### cat_dpo probe\n")[1]
    assert differences.split("###")[0].count("| minus dpo |") == 1
    assert (tmp_path / "settings.svg").read_text().startswith("<svg")
    (tmp_path / "results.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    again = subprocess.run(command, check=True, timeout=600, capture_output=True, text=True)
    assert again.stdout.count("1 of 1 runs") == 1
