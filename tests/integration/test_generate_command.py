"""`jaxalign generate` as a user types it: prompts of every kind, answers in order, errors that say the remedy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

from jaxalign.cli import app
from jaxalign.config import parse_config
from jaxalign.data.schema import Message
from jaxalign.models.sampling import Sampling
from jaxalign.run import generate
from jaxalign.run.generate import generate_texts, stop_ids, text_format
from jaxalign.run.load import load_model
from jaxalign.run.prompt_file import read_prompt_file
from jaxalign.run.train import train
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("generate") / "model")


def command(*arguments: Any, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, arguments)], input=stdin)


def lines(*arguments: Any, stdin: str | None = None) -> list[dict[str, Any]]:
    """What is printed on standard output, parsed."""
    result = command(*arguments, "--max-new-tokens", 5, stdin=stdin)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return [json.loads(line) for line in result.stdout.splitlines()]


def refusal(*arguments: Any, stdin: str | bytes | None = None) -> str:
    result = command(*arguments, stdin=stdin)
    assert result.exit_code != 0
    return str(result.exception or result.output)


QUESTIONS = ["Why?", "A much longer question, of more than thirty-two tokens?", "Who?"]


def test_answers_come_in_the_order_of_the_prompts_whatever_the_kind_of_file(
    model: Path, tmp_path: Path
) -> None:
    rows = [{"id": 10 + i, "prompt": text} for i, text in enumerate(QUESTIONS)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "p.csv").write_text("id,prompt\n" + "".join(f'{r["id"]},"{r["prompt"]}"\n' for r in rows))
    (tmp_path / "p.txt").write_text("\n\n".join(QUESTIONS))
    found = {name: lines(model, "--prompts", tmp_path / name) for name in ("p.jsonl", "p.csv", "p.txt")}
    found["-"] = lines(model, "--prompts", "-", stdin="\n".join(QUESTIONS))
    responses = [line["responses"] for line in found["-"]]
    assert all(len(answers) == 1 for answers in responses)
    assert len({answers[0] for answers in responses}) > 1
    for name, answered in found.items():
        assert [line["prompt"] for line in answered] == QUESTIONS
        assert [line["index"] for line in answered] == [0, 1, 2]
        assert [line["responses"] for line in answered] == responses
        ids = [line.get("id") for line in answered]
        assert ids == (["10", "11", "12"] if name.startswith("p.") and name != "p.txt" else [None] * 3)


def test_conversations_and_system_prompts_reach_the_model(model: Path, tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    chats = [[{"role": "user", "content": "Why?"}], [system, {"role": "user", "content": "Why?"}]]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"prompt": chat}) + "\n" for chat in chats))
    plain, with_system = lines(model, "--prompts", path)
    assert plain["prompt"] == chats[0]
    assert plain["responses"] != with_system["responses"]
    for line in lines(model, "--prompts", path, "--system-prompt", "Be brief."):
        assert line["responses"] == with_system["responses"]
    (raw,) = lines(model, "--prompts", "-", "--raw", stdin="Why?")
    assert raw["responses"] != plain["responses"]


def test_samples_depend_on_the_seed_and_not_on_batches(model: Path) -> None:
    drawn = ["--prompts", "-", "--temperature", 1, "--top-k", 50, "--top-p", 0.9, "--samples", 3]
    stdin = "\n".join(QUESTIONS)
    one = lines(model, *drawn, "--seed", 3, stdin=stdin)
    assert all(len(set(line["responses"])) > 1 for line in one)
    assert all(len(line["stopped"]) == 3 for line in one)
    assert lines(model, *drawn, "--seed", 3, "--batch-size", 8, stdin=stdin) == one
    assert lines(model, *drawn, "--seed", 4, stdin=stdin) != one
    texts = generate_texts(
        load_model(model),
        [(Message("user", text),) for text in QUESTIONS],
        sampling=Sampling(1.0, top_k=50, top_p=0.9),
        num_samples=3,
        max_new_tokens=5,
        seed=3,
    )
    assert texts == [line["responses"] for line in one]


def test_output_is_whole_or_not_there(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "answers.jsonl"
    assert lines(model, "--prompts", "-", "--output", output, stdin="\n".join(QUESTIONS)) == []
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert written == lines(model, "--prompts", "-", stdin="\n".join(QUESTIONS))
    assert [path.name for path in output.parent.iterdir()] == ["answers.jsonl"]
    (output.parent / "answers.jsonl.partial").write_text("{}\n")
    message = refusal(model, "--prompts", "-", "--output", output, stdin="Why?")
    assert "answers.jsonl.partial holds what another process has so far, or had when it ended" in message


def test_output_that_another_process_begins_to_write_is_left_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / "answers.jsonl.partial"

    def load(*given: Any, **options: Any) -> Any:
        partial.write_text("of another process\n")
        return load_model(*given, **options)

    monkeypatch.setattr(generate, "load_model", load)
    message = refusal(model, "--prompts", "-", "--output", tmp_path / "answers.jsonl", stdin="Why?")
    assert "holds what another process has so far" in message
    assert partial.read_text() == "of another process\n"


def test_folder_as_output_is_refused_before_anything_is_done(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    message = refusal(model, "--prompts", "-", "--output", tmp_path / "out", stdin="Why?")
    assert "is a folder, expected a file" in message
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_line_is_one_prompt_whatever_else_separates_lines_elsewhere(tmp_path: Path) -> None:
    text = "One\u2028of\u0085five\x0bor\x0csix\x1cparts?\r\nTwo?\n\n"
    (tmp_path / "prompts.txt").write_bytes(text.encode())
    found = read_prompt_file(str(tmp_path / "prompts.txt"))
    assert [prompt.given for prompt in found] == [text.split("\r\n")[0], "Two?"]
    assert [prompt.origin.rpartition(":")[2] for prompt in found] == ["1", "2"]


def test_what_was_answered_before_a_failure_is_kept(tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "model", tie_word_embeddings=False)
    weights = load_file(model / "model.safetensors")
    (id_,) = tiny.make_tokenizer()("%")["input_ids"]
    weights["model.embed_tokens.weight"][id_] = np.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    output = tmp_path / "answers.jsonl"
    message = refusal(model, "--prompts", "-", "--output", output, stdin="\n".join([*QUESTIONS[:2], "%"]))
    assert (
        "the logits after standard input:3 and 0 new tokens are not finite; check the model's weights"
        in message
    )
    assert not output.exists()
    kept = [json.loads(line) for line in (tmp_path / "answers.jsonl.partial").read_text().splitlines()]
    assert [line["index"] for line in kept] == [1, 0]  # the longest prompt first


def test_a_run_answers_with_its_adapter_and_its_own_format(tmp_path: Path) -> None:
    settings = tiny.run_settings(
        tmp_path,
        model={"lora": {"rank": 2}},
        data={"system_prompt": "Be kind."},
        optimizer={"learning_rate": 0.3},
        train={"num_steps": 4},
        mesh={"data": 8},
    )
    run = tmp_path / "run"
    train(parse_config(settings, "test"), run)
    newest, older, base = (
        lines(path, "--prompts", "-", *step, stdin="Why?")[0]["responses"]
        for path, step in ((run, []), (run, ["--step", 2]), (tmp_path / "model", []))
    )
    assert len({*newest, *older, *base}) == 3
    format = text_format(load_model(run))
    ids = format.encoder.prompt_ids((Message("user", "Why?"),), "test")
    assert "Be kind." in format.tokenizer.decode(ids)
    replaced = text_format(load_model(run), system_prompt="Be short.")
    assert "Be short." in replaced.tokenizer.decode(
        replaced.encoder.prompt_ids((Message("user", "Why?"),), "")
    )


def test_answers_end_where_transformers_would_end_them(tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "model")
    loaded = load_model(model)
    tokenizer = loaded.checkpoint.load_tokenizer()
    assert stop_ids(loaded.checkpoint, tokenizer) == (1,)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 9]}))
    assert stop_ids(load_model(model).checkpoint, tokenizer) == (1, 5, 9)
    everything = list(range(264))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": everything}))
    (line,) = lines(model, "--prompts", "-", stdin="Why?")
    assert (line["responses"], line["stopped"]) == ([""], [True])
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": "five"}))
    assert "eos_token_id='five': expected a token id" in refusal(model, "--prompts", "-", stdin="Why?")


def test_options_without_effect_are_refused(model: Path) -> None:
    for options, message in (
        (["--top-k", 5], "top_k with temperature 0"),
        (["--top-p", 0.5], "top_p with temperature 0"),
        (["--seed", 1], "--seed 1 has no effect at temperature 0"),
        (["--samples", 2], "2 samples at temperature 0 would all be the same"),
        (["--raw", "--system-prompt", "x"], "a system prompt has an effect on chats alone"),
        (["--step", 3], "--step 3 needs the workdir of a run"),
        (["--temperature", 1, "--top-k", 264], "top_k=264 keeps all 264 tokens"),
    ):
        assert message in refusal(model, "--prompts", "-", *options, stdin="Why?"), options


def test_prompts_that_cannot_be_read_or_answered_are_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("Why?\n" + 400 * "w" + "\n")
    message = refusal(model, "--prompts", tmp_path / "long.txt")
    assert "long.txt:2 has 4" in message
    assert "more than the model's context of 512" in message
    assert "standard input: no prompts" in refusal(model, "--prompts", "-", stdin="\n \n")
    assert "no file" in refusal(model, "--prompts", tmp_path / "missing.jsonl")
    row = refusal(model, "--prompts", "-", stdin='{"prompt": "Why?"}\n{"prompt": "How?"}\n')
    assert "standard input:1: a row where a text is read" in row
    assert "file whose name ends in .jsonl" in row
    assert "byte 0xff at position 4" in refusal(model, "--prompts", "-", stdin=b"Why?\xff")
    for row, problem in (
        ({"text": "Why?"}, "rows.jsonl:1: field 'prompt': missing field"),
        ({"prompt": []}, "expected a text, or messages with a role"),
        ({"prompt": [{"role": "assistant", "content": "Yes"}]}, "the last by the user; correct the row"),
        ({"prompt": [{"role": "robot", "content": "Yes"}]}, "messages with a role (system, user, assistant)"),
        ({"prompt": " "}, "empty text"),
        ({"prompt": "Why?", "id": "\ud800"}, "field 'id': lone surrogate"),
        (
            {"prompt": [{"role": "user", "content": "Why?", "name": "\ud800"}]},
            "field 'prompt': lone surrogate",
        ),
    ):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
        found = refusal(model, "--prompts", tmp_path / "rows.jsonl")
        assert problem in found
        assert "on_error" not in found  # nothing skips a row here
    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": chat}) + "\n")
    assert "no raw prompt" in refusal(model, "--prompts", tmp_path / "rows.jsonl", "--raw")


def test_model_without_a_chat_template_needs_raw_prompts(tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    assert "has no chat template; give --raw" in refusal(model, "--prompts", "-", stdin="Why?")
    assert len(lines(model, "--prompts", "-", "--raw", stdin="Why?")) == 1
