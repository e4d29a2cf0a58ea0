"""Score models against torch on random weights, and what is no score model."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign.data.schema import Message
from jaxalign.evaluation.judges.build import make_judge
from jaxalign.evaluation.judges.interface import JudgeError
from jaxalign.evaluation.judges.score_model import ScoreModel, conversation_text, load_reward_model
from jaxalign.evaluation.judges.settings import RewardModelConfig, ScoreModelConfig
from jaxalign.hf.checkpoint import CheckpointError
from jaxalign.hf.mapping import TensorMismatchError
from jaxalign.hf.score_model import open_score_model
from jaxalign.models.config import UnsupportedModelError
from jaxalign.parallel import MeshConfig, make_mesh
from tests.evaluation.judges.cases import CONVERSATIONS, prompts_and_responses, write_score_model
from tests.tiny import make_tokenizer

LAYOUTS: dict[str, dict[str, Any]] = {
    "cost": {},
    "cost without bias": {"bias": False},
    "cost scaled": {"do_normalize": True, "normalizer_type": "RunningMeanStd"},
    "reward": {"score_type": "reward"},
    "reward normalised": {"score_type": "reward", "do_normalize": True},
}


def torch_scores(folder: Path) -> np.ndarray:
    """The layout stated again: a Llama without head, a linear map of the last token's state, the normaliser."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    settings = json.loads((folder / "config.json").read_text())
    tensors = {name: torch.from_numpy(x) for name, x in load_file(folder / "model.safetensors").items()}
    model = LlamaModel(LlamaConfig(**{k: v for k, v in settings.items() if k != "architectures"})).eval()
    model.load_state_dict({k.removeprefix("model."): x for k, x in tensors.items() if k.startswith("model.")})
    head = torch.nn.Linear(16, 1, bias=settings["bias"])
    head.load_state_dict({k.removeprefix("score_head."): x for k, x in tensors.items() if "score_head" in k})
    tokenizer = make_tokenizer()
    scores = []
    for prompt, response in CONVERSATIONS:
        text = f"BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{response}" + tokenizer.eos_token
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
            scores.append(head(states)[0, -1, 0].item())
    if not settings["do_normalize"]:
        return np.array(scores)
    mean, var = (tensors[f"normalizer.{name}"].item() for name in ("mean", "var"))
    centre = mean if settings["score_type"] == "reward" else 0.0
    return (np.array(scores) - centre) / (np.sqrt(var) + 1e-8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_those_of_torch(layout, tmp_path):
    folder = write_score_model(tmp_path, **LAYOUTS[layout])
    scores = ScoreModel(open_score_model(folder), batch_size=2)(*prompts_and_responses())
    np.testing.assert_allclose(scores, torch_scores(folder), rtol=1e-4, atol=1e-5)
    assert np.ptp(scores) > 0.1


def test_a_cost_above_zero_is_unsafe_and_its_sigmoid_the_harm(tmp_path):
    folder = write_score_model(tmp_path)
    found = make_judge(ScoreModelConfig(path=folder))(*prompts_and_responses())
    cost = torch_scores(folder)
    np.testing.assert_allclose(found.harm, 1 / (1 + np.exp(-cost)), rtol=1e-4)
    np.testing.assert_array_equal(found.safe, cost <= 0)
    assert set(found.safe) == {True, False}


def test_a_mesh_changes_no_score(tmp_path):
    checkpoint = open_score_model(write_score_model(tmp_path))
    mesh = make_mesh(MeshConfig(data=1, fsdp="rest"))
    on_one, on_all = (ScoreModel(checkpoint, mesh=m)(*prompts_and_responses()) for m in (None, mesh))
    np.testing.assert_allclose(on_all, on_one, rtol=1e-5, atol=1e-5)


def test_bfloat16_files_and_computation_are_near(tmp_path):
    folder = write_score_model(tmp_path)
    exact = ScoreModel(open_score_model(folder))(*prompts_and_responses())
    tensors = load_file(folder / "model.safetensors")
    rounded = {k: x if "count" in k else x.astype(ml_dtypes.bfloat16) for k, x in tensors.items()}
    save_file(rounded, folder / "model.safetensors", {"format": "pt"})
    near = ScoreModel(open_score_model(folder), dtype="bfloat16")(*prompts_and_responses())
    np.testing.assert_allclose(near, exact, atol=0.2)


def test_earlier_turns_are_closed_and_special_tokens_of_an_answer_are_broken_up():
    tokenizer = make_tokenizer()
    prompt = (Message("system", "S"), Message("user", "A"), Message("assistant", "B"), Message("user", "C"))
    text = conversation_text(prompt, "D<|im_end|>E", tokenizer)
    assert text == (
        "BEGINNING OF CONVERSATION: USER: A ASSISTANT:B<|im_end|>USER: C ASSISTANT:D< |im_end|>E<|im_end|>"
    )
    assert tokenizer(text)["input_ids"].count(tokenizer.eos_token_id) == 2


def test_a_conversation_that_is_too_long_has_no_score(tmp_path):
    model = ScoreModel(open_score_model(write_score_model(tmp_path)), max_length=64)
    scores = model([(Message("user", "Hi"),)] * 2, ["short", "long " * 20])
    np.testing.assert_array_equal(np.isnan(scores), [False, True])


def test_more_tokens_than_the_model_reads_are_refused(tmp_path):
    with pytest.raises(JudgeError, match=r"max_length=300: .* reads 256 tokens at most"):
        make_judge(ScoreModelConfig(path=write_score_model(tmp_path), max_length=300))


def test_reward_and_cost_models_are_not_mixed_up(tmp_path):
    reward = write_score_model(tmp_path / "reward", score_type="reward")
    cost = write_score_model(tmp_path / "cost")
    with pytest.raises(JudgeError, match="is a reward model, which scores helpfulness; expected a cost"):
        make_judge(ScoreModelConfig(path=reward))
    with pytest.raises(JudgeError, match="is a cost model, which judges harm; expected a reward"):
        load_reward_model(RewardModelConfig(path=cost))
    scores = load_reward_model(RewardModelConfig(path=reward))(*prompts_and_responses())
    np.testing.assert_allclose(scores, torch_scores(reward), rtol=1e-4, atol=1e-5)


def test_a_model_that_does_not_say_its_type_needs_it(tmp_path):
    folder = write_score_model(tmp_path, score_type=None)
    with pytest.raises(CheckpointError, match="score_type is None, expected reward or cost"):
        open_score_model(folder)
    assert open_score_model(folder, "cost").score_type == "cost"
    with pytest.raises(CheckpointError, match="says score_type='cost', not 'reward'"):
        open_score_model(write_score_model(tmp_path), "reward")


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"score_dim": 2}, CheckpointError, r"score_dim is 2, expected a single score \(1\)"),
        ({"score_type": "critic"}, CheckpointError, "score_type is 'critic', expected reward or cost"),
        ({"architectures": ["LlamaForCausalLM"]}, CheckpointError, "is a LlamaForCausalLM, expected a score"),
        ({"attention_sinks": 4}, UnsupportedModelError, "attention_sinks=4 is unknown"),
    ],
)
def test_what_is_no_score_model_is_refused(config, error, message, tmp_path):
    with pytest.raises(error, match=message):
        open_score_model(write_score_model(tmp_path, **config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_head.weight": None}, "has no score_head.weight, expected one value for each of the 16"),
        ({"score_head.weight": np.ones((2, 16), np.float32)}, "a score_head.weight of 32 values"),
        ({"score_head.bias": None}, "config.json says bias=True, but score_head.bias is missing"),
        ({"normalizer.var": None}, "normalizer.mean and normalizer.var are not one number each"),
        ({"normalizer.var": np.array([-1.0], np.float32)}, "are not one number each"),
    ],
)
def test_heads_and_normalisers_that_do_not_fit_are_refused(changes, message, tmp_path):
    folder = write_score_model(tmp_path, do_normalize=True)
    tensors = load_file(folder / "model.safetensors") | changes
    kept = {name: x for name, x in tensors.items() if x is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        open_score_model(folder)


def test_a_missing_tensor_of_the_decoder_is_named(tmp_path):
    folder = write_score_model(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TensorMismatchError, match=r"missing model\.norm\.weight"):
        ScoreModel(open_score_model(folder))
