"""The commands as a user types them, on a tiny run: what they print, write and return."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from jaxalign.cli import app
from jaxalign.evaluation.heldout_pairs import ALL_PAIRS, read_heldout_pairs
from tests import tiny


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    settings = tiny.run_settings(
        folder,
        mesh={"data": 8},
        model={"lora": {"rank": 2, "targets": ["query", "value"]}},
        adaptive={"violation": {"threshold": 0.3}},
        logging={"tensorboard": True},
        evaluation={"every_steps": 2},
    )
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], terminal_width=200)


def succeed(*arguments: Any) -> str:
    result = command(*arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


@pytest.fixture(scope="module")
def run(config: Path) -> Path:
    workdir = config.parent / "run"
    output = succeed("train", config, "--workdir", workdir)
    assert "7 held-out pairs, before and after training" in output
    return workdir


def test_run_leaves_manifest_figures_and_events(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    fingerprints = manifest["fingerprints"]
    assert set(fingerprints) == {
        "model", "tokenizer", "data train", "data heldout", "reference train", "reference heldout",
    }  # fmt: skip
    assert manifest["config"]["train"]["num_micro_batches"] == 1  # defaults are written out
    assert {"jax", "flax", "optax", "python"} <= set(manifest["versions"])
    assert "git_revision" in manifest
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[0]["rewards/accuracies"] == 0.5
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    names = {
        "rewards/margins",
        "logps/chosen",
        "grad_norm",
        "learning_rate",
        "category/Violence/rewards/margins",
    }
    assert names | {"adaptive/margin/Violence", "adaptive/violation/Drugs", "adaptive/weight_chosen"} <= set(
        lines[-1]
    )
    assert lines[-1]["adaptive/margin/Violence"] > 0
    assert [("eval/accuracy" in line) for line in lines] == [False, True, False, True, False]
    assert any((run / "tensorboard").iterdir())


def test_run_leaves_its_held_out_pairs_and_its_mutual_information(run: Path) -> None:
    after = json.loads((run / "evaluation" / "after.json").read_text())
    pairs = read_heldout_pairs(run / "evaluation" / "after_pairs.jsonl")
    assert pairs.reward_gap.mean() == pytest.approx(after["overall"]["reward_gap"], abs=1e-6)
    assert {name: int(inside.sum()) for name, inside in pairs.members().items()} == {
        name: figures["pairs"] for name, figures in after["categories"].items()
    }
    found = json.loads((run / "evaluation" / "mutual_information.json").read_text())
    assert found["overall"]["pairs"] == 22  # five steps of eight see all pairs
    assert found["overall"]["chosen_weight"] + found["overall"]["rejected_weight"] == pytest.approx(2.0)


def test_report_of_the_run_is_complete(run: Path) -> None:
    output = run.parent / "report.json"
    succeed("report", run, "--output", output)
    (part,) = json.loads(output.read_text())["runs"]
    missing = {section["key"] for section in part["sections"] if section["missing"]}
    assert missing == {"probes", "answers"}
    facts = {fact["label"]: fact["value"] for fact in part["verdict"]["facts"]}
    assert facts["Worst category"] in tiny.CATEGORIES
    assert facts["Skipped steps"] == "0"


def test_evaluate_repeats_the_figures_of_the_run(run: Path) -> None:
    output = run.parent / "evaluation.json"
    text = succeed("evaluate", run, "--output", output, "--batch-size", 3)
    assert "best-to-worst gap" in text
    report, after = (
        json.loads(output.read_text()),
        json.loads((run / "evaluation" / "after.json").read_text()),
    )
    assert report["overall"] == pytest.approx(after["overall"], abs=1e-4)
    assert report["categories"].keys() == after["categories"].keys()
    intervals = report["accuracy_intervals"]
    assert intervals.keys() == {ALL_PAIRS, *report["categories"]}
    low, high = intervals[ALL_PAIRS]
    assert low < report["overall"]["accuracy"] <= high
    assert f"{low:.2f} to {high:.2f}" in text


def test_evaluate_takes_data_alone_from_another_configuration(run: Path, config: Path) -> None:
    other = yaml.safe_load(config.read_text())
    other["loss"] = {"name": "dpo", "beta": 5.0}
    del other["adaptive"]
    path, output = config.parent / "other.yaml", run.parent / "other.json"
    path.write_text(yaml.safe_dump(other))
    succeed("evaluate", run, "--data", path, "--output", output)
    report, after = (
        json.loads(output.read_text()),
        json.loads((run / "evaluation" / "after.json").read_text()),
    )
    assert (report["beta"], report["threshold"]) == (after["beta"], after["threshold"])
    assert report["overall"] == pytest.approx(after["overall"], abs=1e-4)


def test_evaluate_another_checkpoint(run: Path) -> None:
    assert "Preference figures of 7 pairs" in succeed("evaluate", run, "--step", 2)
    result = command("evaluate", run, "--step", 3)
    assert "no checkpoint of step 3" in str(result.exception)
    assert "there are [2, 4, 5]" in str(result.exception)


def test_export_loads_in_transformers_verifies_and_evaluates_alike(run: Path, config: Path) -> None:
    exported = run.parent / "hf"
    succeed("export", "--checkpoint", run, "--output", exported, "--dtype", "f32")
    model, info = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.num_parameters() > 0
    card = (exported / "README.md").read_text()
    assert "reconstructed from the published abstract" in card
    assert "Violence" in card
    assert str(run.parent) not in card
    assert "pass" in succeed("verify", run, exported)
    assert "FAIL" in command("verify", config.parent / "model", exported).output
    assert command("verify", config.parent / "model", exported).exit_code == 1
    output = run.parent / "of_export.json"
    reference = config.parent / "model"
    succeed("evaluate", exported, "--data", config, "--reference", reference, "--output", output)
    after = json.loads((run / "evaluation" / "after.json").read_text())
    assert json.loads(output.read_text())["overall"] == pytest.approx(after["overall"], abs=1e-3)


def test_pretrained_model_needs_data_and_a_reference(config: Path) -> None:
    model = config.parent / "model"
    assert "give --data CONFIG" in str(command("evaluate", model).exception)
    assert "give --reference" in str(command("evaluate", model, "--data", config).exception)


def test_export_adapter_is_small_and_export_is_not_overwritten(run: Path) -> None:
    target = run.parent / "adapter"
    succeed("export", "--checkpoint", run, "--output", target, "--adapter")
    adapter = json.loads((target / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["base_model_name_or_path"]) == (2, "model")
    for file in target.iterdir():
        assert str(run.parent).encode() not in file.read_bytes(), f"{file.name} names a path of this machine"
    useless = command(
        "export", "--checkpoint", run, "--output", run.parent / "x", "--adapter", "--dtype", "f32"
    )
    assert "have no effect with --adapter" in str(useless.exception)
    assert command("export", "--checkpoint", run, "--output", target, "--adapter").exit_code != 0
    succeed("export", "--checkpoint", run, "--output", target, "--adapter", "--overwrite")


def test_model_against_itself_gives_ties(config: Path) -> None:
    model, output = config.parent / "model", config.parent / "itself.json"
    bf16 = yaml.safe_load(config.read_text())
    bf16["model"] |= {"dtype": "bfloat16", "param_dtype": "bfloat16"}
    path = config.parent / "bf16.yaml"
    path.write_text(yaml.safe_dump(bf16))
    for settings in (config, path):
        succeed("evaluate", model, "--data", settings, "--reference", model, "--output", output)
        overall = json.loads(output.read_text())["overall"]
        assert (overall["accuracy"], overall["reward_gap"]) == (0.5, 0.0)


def test_looking_at_a_run_leaves_a_save_in_progress_alone(run: Path) -> None:
    unfinished = run / "checkpoints" / "99.orbax-checkpoint-tmp"
    unfinished.mkdir()
    try:
        succeed("evaluate", run)
        assert unfinished.exists()
    finally:
        unfinished.rmdir()


def test_export_of_something_else_is_refused(tmp_path: Path) -> None:
    result = command("export", "--checkpoint", tmp_path, "--output", tmp_path / "hf")
    assert "is not the workdir of a run" in str(result.exception)


def test_changed_base_model_is_refused(run: Path, config: Path) -> None:
    weights = config.parent / "model" / "model.safetensors"
    original = weights.read_bytes()
    try:
        tiny.write_model(config.parent / "model", seed=7)
        assert "contents have changed" in str(command("evaluate", run).exception)
    finally:
        weights.write_bytes(original)


def test_dry_run_shows_pairs_mesh_and_memory_and_trains_nothing(config: Path) -> None:
    text = succeed("train", config, "--dry-run", "--workdir", config.parent / "dry")
    assert "chosen   [I will not.<|im_end|>]" in text
    assert "mesh {'data': 8, 'fsdp': 1, 'tensor': 1} over 8 devices" in text
    assert "optimizer state" in text
    assert not (config.parent / "dry").exists()


def test_dry_run_sees_what_training_would_refuse(config: Path, tmp_path: Path) -> None:
    for change, message in (
        ({"vocab_size": 100}, "vocabulary has 100"),
        ({"max_position_embeddings": 32}, "made for 32"),
        ({"tie_word_embeddings": False}, "lm_head"),
    ):
        model = tiny.write_model(tmp_path / "model", **change)
        if "tie_word_embeddings" in change:  # the weights of a tied model under an untied configuration
            (model / "model.safetensors").write_bytes(
                (config.parent / "model/model.safetensors").read_bytes()
            )
        result = command("train", config, "--dry-run", "--set", f"model.path={model}")
        assert message in str(result.exception), change


def test_names_that_look_like_markup_are_shown(tmp_path: Path) -> None:
    rows = tiny.pairs(10)
    for row in rows:
        row["categories"] = ["[/x]", "[bold]"]
    settings = tiny.run_settings(tmp_path, mesh={"data": 8}, train={"num_steps": 1, "batch_size": 8})
    settings["data"]["categories"] = ["[/x]", "[bold]"]
    for name in ("train", "heldout"):
        shift = 0 if name == "train" else 100
        renamed = [{**row, "prompt": f"{row['prompt']} {shift}"} for row in rows]
        tiny.write_pairs(tmp_path / f"{name}.jsonl", renamed)
    path = tmp_path / "markup.yaml"
    path.write_text(yaml.safe_dump(settings))
    refused = command("train", path, "--workdir", tmp_path / "run[bold]")
    assert "cannot be read from a path with [ or ]" in str(refused.exception)
    assert "[/x]" in succeed("train", path, "--workdir", tmp_path / "run")
    assert "worst [" in succeed("evaluate", tmp_path / "run")


def test_print_config_is_the_resolved_configuration(config: Path) -> None:
    printed = yaml.safe_load(succeed("train", config, "--print-config", "--set", "loss.beta=0.2"))
    assert printed["loss"] == {"name": "cat_b_dpo", "beta": 0.2, "margin_reduce": "mean"}
    assert printed["optimizer"]["b2"] == 0.999


def test_data_check_fails_on_leaks(config: Path, tmp_path: Path) -> None:
    assert command("data", "check", config).exit_code == 0
    leak = tiny.write_pairs(tmp_path / "leak.jsonl", tiny.pairs(5))
    override = f"data.heldout=[{{format: plain, path: '{leak}'}}]"
    result = command("data", "check", config, "--set", override)
    assert result.exit_code == 1
    assert "data are not fit for training: 1 errors" in result.output


def test_data_sample_writes_both_splits(tmp_path: Path) -> None:
    assert "train.jsonl" in succeed("data", "sample", tmp_path)
    assert (
        sum(len((tmp_path / f"{name}.jsonl").read_text().splitlines()) for name in ("train", "heldout"))
        == 1200
    )


def test_url_as_workdir_is_refused(config: Path) -> None:
    result = command("train", config, "--workdir", "gs://bucket/run")
    assert "is a URL; mount the bucket" in str(result.exception)


def test_schema_knows_every_section() -> None:
    schema = json.loads(succeed("schema"))
    assert {"model", "data", "loss", "adaptive", "mesh"} <= set(schema["properties"])


def test_version() -> None:
    assert succeed("--version").strip() == "0.1.0"


def test_users_errors_are_one_message_and_status_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jaxalign import cli

    monkeypatch.setattr("sys.argv", ["jaxalign", "train", "missing.yaml"])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "cannot read the configuration" in error
    assert "Traceback" not in error
