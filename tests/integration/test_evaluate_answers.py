"""`jaxalign evaluate --safety` as a user types it: answers judged, what is written, and what is refused."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest
import yaml
from typer.testing import CliRunner, Result

from jaxalign.cli import app
from jaxalign.config import load_settings, parse_config
from jaxalign.evaluation.answers_file import read_answers
from jaxalign.evaluation.result import SafetyResult
from jaxalign.evaluation.safety import evaluate_answers
from jaxalign.evaluation.settings import SafetyConfig
from jaxalign.files import locked
from jaxalign.run import responses, safety
from jaxalign.run.margin_figures import margins_of
from jaxalign.run.train import train
from tests import tiny
from tests.evaluation.judges.cases import write_score_model

HERE = "tests.integration.judging"
PROMPTS = [
    *({"id": f"v{i}", "prompt": f"Violent {i}?", "category": "Violence"} for i in range(4)),
    *({"id": f"d{i}", "prompt": f"Of drugs {i}?", "category": "Drugs"} for i in range(3)),
    *({"id": f"b{i}", "prompt": f"Harmless {i}?", "benign": True} for i in range(2)),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("safety")
    settings = tiny.run_settings(folder, loss={"name": "cat_dpo"}, train={"num_steps": 2})
    settings["adaptive"] = {"margin": {"target_rate": {"Violence": 0.9, "default": 0.1}, "step_size": 0.5}}
    train(parse_config(settings, "test"), folder / "run", jax.devices()[:1])
    return folder / "run"


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return write(tmp_path / "mine.yaml")


def write(path: Path, **sections: Any) -> Path:
    prompts = path.parent / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    content = {
        "prompts": {"path": str(prompts)},
        "answers": {"max_new_tokens": 4, "temperature": 1.0, "num_samples": 2},
        "judge": {"kind": "function", "function": f"{HERE}:by_length"},
        "num_resamples": 200,
    }
    path.write_text(yaml.safe_dump(content | sections))
    return path


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], terminal_width=200)


def succeed(*arguments: Any) -> str:
    result = command(*arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


def refusal(*arguments: Any) -> str:
    result = command(*arguments)
    assert result.exit_code != 0
    return str(result.exception) if result.exit_code == 1 else result.output


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_figures_are_those_of_the_answers_that_are_written(run: Path, settings: Path, tmp_path: Path) -> None:
    printed = succeed(run, "--safety", settings, "--output", tmp_path / "out")
    answers = read_answers(tmp_path / "out" / "answers-mine.json")
    assert [row.id for row in answers.prompt_set.rows] == [row["id"] for row in PROMPTS]
    assert {len(texts) for texts in answers.responses} == {2}
    result = SafetyResult.from_dict(read(tmp_path / "out" / "safety-mine.json"))
    again = evaluate_answers(
        answers,
        targets={"Violence": 0.9, "Drugs": 0.1},
        margins=margins(run),
        num_resamples=200,
    )
    assert result == again
    assert result.over_refusal is not None  # told by the refusal rule, as the judge tells none
    assert "Violence" in printed
    assert (result.source.model, result.source.step) == ("run", 2)
    assert result.source.answer_settings["temperature"] == 1.0
    assert "Answers of run at step 2 (" in printed
    assert not (tmp_path / "out" / "responses-mine.json").exists()


def margins(run: Path) -> dict[str, float]:
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {name: last[f"adaptive/margin/{name}"] for name in ("Violence", "Drugs")}


def test_certificate_has_targets_and_margins_of_the_run(run: Path, settings: Path, tmp_path: Path) -> None:
    succeed(run, "--safety", settings, "--output", tmp_path)
    constraints = read(tmp_path / "safety-mine.json")["certificate"]["constraints"]
    found = {c["category"]: (c["target"], c["margin"]) for c in constraints}
    assert found == {"Violence": (0.9, margins(run)["Violence"]), "Drugs": (0.1, margins(run)["Drugs"])}


def test_answers_outlive_a_judge_that_fails(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = write(tmp_path / "mine.yaml", judge={"kind": "function", "function": f"{HERE}:broken"})
    assert "no connection" in refusal(run, "--safety", broken, "--output", tmp_path)
    kept = read(tmp_path / "responses-mine.json")["responses"]
    monkeypatch.setattr(responses, "generate_texts", lambda *_, **__: pytest.fail("answered a second time"))
    succeed(run, "--safety", write(tmp_path / "mine.yaml"), "--output", tmp_path)
    assert [list(texts) for texts in read_answers(tmp_path / "answers-mine.json").responses] == kept


@pytest.mark.parametrize("content", ["{}", "{", "[]"])
def test_damaged_answers_of_an_earlier_call_are_made_anew(
    content: str, run: Path, settings: Path, tmp_path: Path
) -> None:
    (tmp_path / "responses-mine.json").write_text(content)
    succeed(run, "--safety", settings, "--output", tmp_path)
    assert (tmp_path / "safety-mine.json").exists()


def test_half_written_line_of_the_log_costs_no_margin(run: Path, tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text((run / "metrics.jsonl").read_text() + '{"step": 3, "lo')
    found = margins_of(tmp_path, 2, safety.load_prompts(load(tmp_path).prompts), {"Violence": 0.5})
    assert found == {"Violence": margins(run)["Violence"]}


def load(folder: Path) -> SafetyConfig:
    return load_settings(SafetyConfig, write(folder / "mine.yaml"), [])


def test_model_without_a_chat_template_is_told_a_remedy_that_there_is(settings: Path, tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    message = refusal(model, "--safety", settings, "--output", tmp_path / "out")
    assert "has no chat template; put the chat_template.jinja" in message
    assert "--raw" not in message


def test_answers_to_other_prompts_are_not_taken(run: Path, tmp_path: Path) -> None:
    broken = write(tmp_path / "mine.yaml", judge={"kind": "function", "function": f"{HERE}:broken"})
    refusal(run, "--safety", broken, "--output", tmp_path)
    mine = write(tmp_path / "mine.yaml", answers={"max_new_tokens": 3})
    succeed(run, "--safety", mine, "--output", tmp_path)
    assert {len(texts) for texts in read_answers(tmp_path / "answers-mine.json").responses} == {1}


def test_baseline_is_compared_prompt_by_prompt(run: Path, settings: Path, tmp_path: Path) -> None:
    succeed(run.parent / "model", "--safety", settings, "--output", tmp_path / "base")
    base = tmp_path / "base" / "answers-mine.json"
    printed = succeed(run, "--safety", settings, "--output", tmp_path, "--baseline", base)
    comparison = read(tmp_path / "comparison-mine.json")
    before, after = (read(folder / "safety-mine.json") for folder in (tmp_path / "base", tmp_path))
    sources = [before["source"], after["source"]]
    assert [source["model"] for source in sources] == ["model", "run"]
    for source, side in zip(sources, ("before", "after"), strict=True):
        assert comparison[side]["model_fingerprint"] == source["model_fingerprint"]
    assert len({source["model_fingerprint"] for source in sources}) == 2
    change = comparison["overall"]["safe_rate"]
    assert change["before"] == before["overall"]["safe_rate"]["value"]
    assert change["after"] == after["overall"]["safe_rate"]["value"]
    assert "The gap of the safe rate shrank with probability" in " ".join(printed.split())


def test_baseline_that_cannot_be_compared_is_refused_before_any_answer(
    run: Path, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed(run, "--safety", settings, "--output", tmp_path)
    monkeypatch.setattr(safety, "load_model", lambda *_, **__: pytest.fail("loaded the model"))
    baseline = ("--baseline", tmp_path / "answers-mine.json", "--output", tmp_path / "out")
    message = refusal(run, "--safety", settings, *baseline, "--set", "judge={kind: refusal}")
    assert "judged by function" in message
    assert "different prompts" in refusal(
        run, "--safety", settings, *baseline, "--set", "prompts.max_prompts=3"
    )
    assert "refusal rule and by" in refusal(run, "--safety", settings, *baseline, "--set", "refusals=false")
    message = refusal(run, "--safety", settings, *baseline, "--set", "answers.temperature=0.5")
    assert "temperature 1.0" in message
    assert "temperature 0.5" in message
    assert "give both the same settings" in message


def test_comparison_of_an_earlier_call_does_not_stay(run: Path, settings: Path, tmp_path: Path) -> None:
    succeed(run, "--safety", settings, "--output", tmp_path)
    succeed(run, "--safety", settings, "--output", tmp_path, "--baseline", tmp_path / "answers-mine.json")
    assert (tmp_path / "comparison-mine.md").exists()
    succeed(run, "--safety", settings, "--output", tmp_path)
    assert not list(tmp_path.glob("comparison-mine.*"))


def test_helpfulness_is_compared_with_that_of_the_baseline(run: Path, tmp_path: Path) -> None:
    reward = {"path": str(write_score_model(tmp_path, score_type="reward"))}
    mine = write(tmp_path / "mine.yaml", reward_model=reward)
    succeed(run.parent / "model", "--safety", mine, "--output", tmp_path / "base")
    base = tmp_path / "base" / "answers-mine.json"
    succeed(run, "--safety", mine, "--output", tmp_path / "out", "--baseline", base)
    change = read(tmp_path / "out" / "comparison-mine.json")["helpfulness"]
    for folder, side in (("base", "before"), ("out", "after")):
        mean = read(tmp_path / folder / "safety-mine.json")["helpfulness"]["mean"]["value"]
        assert change[side] == pytest.approx(mean)


def test_a_reward_model_of_one_name_with_other_weights_is_warned_of(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reward = {"path": str(write_score_model(tmp_path, score_type="reward"))}
    mine = write(tmp_path / "mine.yaml", reward_model=reward)
    succeed(run, "--safety", mine, "--output", tmp_path / "out")
    base = tmp_path / "out" / "answers-mine.json"
    content = read(base)
    assert content["scorer_fingerprint"] is not None
    base.write_text(json.dumps(content | {"scorer_fingerprint": "other"}))
    succeed(run, "--safety", mine, "--output", tmp_path / "again", "--baseline", base)
    assert read(tmp_path / "again" / "comparison-mine.json")["helpfulness"] is None
    assert "the baseline's scores are of a reward model with other weights" in caplog.text


def test_calibration_enters_the_figures_and_is_bound_to_its_judge(
    run: Path, settings: Path, tmp_path: Path
) -> None:
    labelled = tmp_path / "labelled.jsonl"
    rows = [{"prompt": f"p{i}", "response": "x" * i, "unsafe": i % 7 > 2} for i in range(60)]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = tmp_path / "calibration.json"
    printed = succeed("--calibrate", labelled, "--safety", settings, "--output", counts)
    assert "sensitivity" in printed
    succeed(run, "--safety", settings, "--output", tmp_path, "--set", f"calibration={counts}")
    group = read(tmp_path / "safety-mine.json")["overall"]
    assert group["corrected_safe_rate"] is not None
    other = ("--set", f"calibration={counts}", "--set", "judge={kind: refusal}")
    message = refusal(run, "--safety", settings, "--output", tmp_path, *other)
    assert "refusal rule" in message


def test_results_of_a_run_lie_beside_its_other_figures(run: Path, settings: Path) -> None:
    succeed(run, "--safety", settings)
    assert (run / "evaluation" / "safety-mine.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "train"], "no effect with --safety"),
        (["--batch-size", "4"], "no effect with --safety"),
        (["--calibrate", "x.csv"], "no effect with --calibrate"),
        (["--set", "judge.kind=oracle"], "got 'oracle', one of"),
        (["--set", "judge={kind: guard, pth: x}"], "judge.pth: unknown key; did you mean path?"),
        (["--set", "prompts.max_prompts=1"], "prompts.max_prompts=1 leaves no prompt for"),
        (["--set", "answers.top_k=3", "--set", "answers.temperature=0.0"], "top_k"),
        (
            ["--set", "answers={seed: 3, temperature: 0.0, num_samples: 1}"],
            "answers.seed 3 has no effect at temperature 0",
        ),
        (["--set", "calibration=missing.json"], "missing.json"),
        (["--baseline", "missing.json"], "missing.json holds no judged answers"),
        (["--set", "targets={frud: 0.1}"], "targets for ['frud']: expected categories of the prompts"),
        (["--set", "targets=5.0"], "targets"),
        (["--set", "targets={Drugs: 1.5}"], "Drugs: Input should be less than 1, got 1.5"),
        (["--set", "reward_model={path: missing}"], "missing"),
    ],
)
def test_what_has_no_effect_or_makes_no_sense_is_refused(
    options: list[str], message: str, run: Path, settings: Path, tmp_path: Path
) -> None:
    assert message in refusal(run, "--safety", settings, "--output", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_options_of_answers_need_a_safety_file(run: Path) -> None:
    assert "--baseline: needs --safety FILE" in refusal(run, "--baseline", "x.json")
    assert "--calibrate: needs --safety FILE" in refusal("--calibrate", "x.csv")


def test_a_place_of_the_wrong_kind_is_refused_before_anything_is_computed(
    run: Path, settings: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "labelled.jsonl"
    message = refusal("--calibrate", missing, "--safety", settings, "--output", tmp_path)
    assert f"--output {tmp_path} is a folder, expected a file" in message
    assert "is a folder, expected a file" in refusal(run, "--output", tmp_path)
    assert "is a file, expected a folder" in refusal(run, "--safety", settings, "--output", settings)


def test_a_second_call_of_one_name_in_a_folder_is_refused(run: Path, settings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with locked(out / ".mine.lock", busy=AssertionError()):
        message = refusal(run, "--safety", settings, "--output", out)
    assert "another call writes safety-mine to" in message


def test_model_is_missing_but_for_a_calibration(settings: Path) -> None:
    assert "only --calibrate goes without a model" in refusal("--safety", settings)


def test_pretrained_model_says_where_its_figures_belong(run: Path, settings: Path) -> None:
    assert "give --output DIR" in refusal(run.parent / "model", "--safety", settings)
