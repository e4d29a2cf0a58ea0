"""The rows and the FLOPs of a step, against counts by hand."""

import dataclasses

import pytest

from jaxalign.config import ConfigError, parse_config
from jaxalign.models.config import decoder_config_from_hf
from jaxalign.models.presets import ARCHITECTURES
from jaxalign.run.plan.workload import assumed_workload, required_flops
from tests import tiny

# Published counts of parameters; those of the embedding, of a head of its own, and of norms.
PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "llama3.2-1b": 1_235_814_400,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return tiny.run_settings(tmp_path_factory.mktemp("run"))


def config_with(settings, **sections):
    return parse_config({**settings, **sections}, "test")


def workload_of(config, model, prompt=10, response=20):
    return assumed_workload(config, model, prompt, response, groups=2, multiple=16)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_preset_has_the_published_number_of_parameters(name):
    model = decoder_config_from_hf(ARCHITECTURES[name])
    D, F = model.hidden_size, model.intermediate_size
    attention = 2 * D * model.head_dim * (model.num_heads + model.num_kv_heads)
    layers = model.num_layers * (attention + 3 * D * F + 2 * D)
    embeddings = (1 if model.tie_embeddings else 2) * model.vocab_size * D
    assert layers + embeddings + D == PARAMETERS[name]


def test_rows_hold_the_pairs_of_a_micro_batch(settings):
    model = decoder_config_from_hf(ARCHITECTURES["smollm2-135m"])
    shape = workload_of(config_with(settings), model).shape
    assert shape.num_groups == 2
    # 8 pairs of 10 + 20 + 20 tokens, 4 of them with 40 response tokens each in either group.
    assert shape.num_rows * shape.length >= 8 * 50
    assert shape.num_targets == 4 * 40


def test_flops_are_those_of_the_linear_layers_attention_and_head(settings):
    model = decoder_config_from_hf(ARCHITECTURES["smollm2-135m"])
    config = config_with(settings)
    workload = workload_of(config, model)
    tokens, targets = 8 * 50, 8 * 40
    # The last token of a response predicts nothing.
    inputs = 8 * (10 + 2 * 19)
    # The prompt's triangle once, each response's triangle and its view of the prompt.
    seen = 8 * (55 + 2 * (190 + 19 * 10))
    counts = (workload.tokens, workload.inputs, workload.targets, workload.seen)
    assert counts == (tokens, inputs, targets, seen)
    weights = 30 * (2 * 576 * 64 * (9 + 3) + 3 * 576 * 1536)
    forward = 2 * weights * inputs + 4 * 9 * 64 * 30 * seen + 2 * 576 * 49152 * targets
    assert required_flops(config, model, workload) == 3 * forward


def test_adapter_saves_the_gradients_of_the_base(settings):
    model = decoder_config_from_hf(ARCHITECTURES["smollm2-135m"])
    full = config_with(settings)
    adapted = config_with(settings, model=settings["model"] | {"lora": {"rank": 1, "targets": ["query"]}})
    workload = workload_of(full, model)
    saved = required_flops(full, model, workload) - required_flops(adapted, model, workload)
    weights = 30 * (2 * 576 * 64 * (9 + 3) + 3 * 576 * 1536)
    of_adapter = 3 * 2 * 30 * (576 + 9 * 64) * workload.inputs
    assert saved == 2 * weights * workload.inputs + 2 * 576 * 49152 * workload.targets - of_adapter


def test_reference_that_runs_in_each_step_costs_a_forward_pass(settings):
    model = decoder_config_from_hf(ARCHITECTURES["smollm2-135m"])
    without, online = config_with(settings), config_with(settings, reference={"mode": "online"})
    workload = workload_of(without, model)
    assert required_flops(online, model, workload) * 3 == required_flops(without, model, workload) * 4


def test_mutual_information_of_the_policy_costs_responses_alone(settings):
    model = decoder_config_from_hf(ARCHITECTURES["smollm2-135m"])
    config = config_with(settings, adaptive={"mi_source": "policy"})
    workload = workload_of(config, model)
    assert workload.alone is not None
    assert workload.alone.tokens == 8 * (1 + 2 * 20)
    assert workload.alone.inputs == 8 * (1 + 2 * 19)
    extra = required_flops(config, model, workload) - required_flops(
        config, model, dataclasses.replace(workload, alone=None)
    )
    assert required_flops(config, model, workload.alone) == 3 * extra  # forward only


def test_layout_does_not_change_what_must_be_done(settings):
    model = decoder_config_from_hf(ARCHITECTURES["smollm2-135m"])
    layouts = [{"layout": "packed"}, {"layout": "padded"}, {"layout": "packed", "share_prefix": False}]
    configs = [config_with(settings, rows=rows) for rows in layouts]
    assert len({required_flops(c, model, workload_of(c, model)) for c in configs}) == 1


def test_sliding_window_shortens_attention(settings):
    plain = decoder_config_from_hf(ARCHITECTURES["smollm2-135m"])
    mistral = {"model_type": "mistral", "sliding_window": 4}
    windowed = decoder_config_from_hf(ARCHITECTURES["smollm2-135m"] | mistral)
    config = config_with(settings)
    # A query sees 4 keys, the first three of a sequence fewer.
    assert workload_of(config, windowed).seen == 8 * (2 * (29 * 4 - 6) - (10 * 4 - 6))
    assert workload_of(config, windowed).seen < workload_of(config, plain).seen


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_pairs_longer_than_the_rows_are_refused_as_in_training(settings, layout):
    model = decoder_config_from_hf(ARCHITECTURES["smollm2-135m"])
    config = config_with(settings, rows={"layout": layout, "length": 48})
    assert workload_of(config, model, prompt=8, response=20).shape.length == 48
    message = (
        r"the longest pair has 50 tokens, but rows\.length=48; raise rows\.length .*; "
        "or plan for shorter pairs with --prompt-tokens and --response-tokens"
    )
    with pytest.raises(ConfigError, match=message):
        workload_of(config, model)


def test_rows_that_the_devices_cannot_use_are_refused_as_in_training(settings):
    model = decoder_config_from_hf(ARCHITECTURES["smollm2-135m"])
    config = config_with(settings, rows={"layout": "padded", "length": 100})
    with pytest.raises(ConfigError, match=r"rows\.length=100 is not a multiple of 16.*nearest: 96 or 112$"):
        workload_of(config, model)
