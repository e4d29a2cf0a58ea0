"""Every shipped configuration loads, validates, and its train step has consistent shapes on its mesh."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import yaml

from jaxalign.batch import PairBatch
from jaxalign.config import dump_config, load_config, load_settings, parse_config
from jaxalign.config.schema import Config
from jaxalign.data.packing import RowShape
from jaxalign.evaluation.settings import SafetyConfig
from jaxalign.models.config import decoder_config_from_hf
from jaxalign.models.presets import ARCHITECTURES
from jaxalign.run.dry_run import memory_estimate
from jaxalign.run.policy import make_policy
from jaxalign.run.program import abstract_batch
from jaxalign.training.loss_table import LOSSES
from jaxalign.training.optimizer import make_optimizer, make_schedule
from jaxalign.training.state import init_state
from jaxalign.training.step import make_train_step

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
EVALUATIONS = [path for path in FILES if path.parent.name == "evaluation"]
CONFIGS = [path for path in FILES if not path.stem.endswith("_base") and path not in EVALUATIONS]
BASELINES = [path for path in CONFIGS if path.parent.name == "baselines"]
DEVICES = {
    "llama3_8b_full_tpu": 64,
    "llama3_70b_lora_tpu": 64,
    "llama3_8b_lora_h100": 8,
    "smollm2_tpu": 4,
    "quickstart": 1,
}


def load(path: Path) -> tuple[Config, int]:
    config = load_config(path)
    num_devices = DEVICES.get(path.stem, 8)
    config.check_devices(num_devices)
    return config, num_devices


def architecture(config: Config) -> dict[str, object]:
    names = {"SmolLM2": "smollm2-135m", "70B": "llama3-70b", "8B": "llama3-8b"}
    name = config.model.path.name  # that of a stage before names no model: it is of the 8B recipes
    return ARCHITECTURES[next((names[part] for part in names if part in name), "llama3-8b")]


def logps_of_a_decoder(params: Any, frozen: Any, batch: PairBatch) -> jax.Array:
    """Stands for the decoder that all baselines share: it is traced with their common settings elsewhere."""
    return batch.reference_logps + jax.tree.leaves(params)[0].sum().astype(jnp.float32)


def row_shape(config: Config, num_devices: int) -> RowShape:
    """One pair of the greatest length in each row."""
    prompt, response = config.data.max_prompt_length, config.data.max_response_length
    groups = math.prod(config.mesh.shape(num_devices)[:2])
    pairs = config.micro_batch_size()
    return RowShape(
        pairs, prompt + 2 * response, groups, pairs // groups * 2 * response, 2 * (prompt + response)
    )


def test_every_loss_has_a_configuration() -> None:
    assert {load(path)[0].loss.name for path in CONFIGS} == set(LOSSES)


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_baseline_is_called_after_its_loss_and_extends_the_common_base(path: Path) -> None:
    raw = yaml.safe_load(path.read_text())
    assert raw["extends"] == "../pku_base.yaml"
    name = {"sacpo": "dpo"}.get(path.stem.partition("_stage")[0], path.stem.partition("_stage")[0])
    assert raw["loss"]["name"] == ("dpo" if path.stem == "modpo_stage1" else name)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_train_step_keeps_the_state(path: Path) -> None:
    config, num_devices = load(path)
    policy = make_policy(config.model, decoder_config_from_hf(architecture(config)), None)
    objective = config.make_objective()
    schedule = make_schedule(config.optimizer, 1000)
    optimizer = make_optimizer(config.optimizer, schedule)
    state = jax.eval_shape(
        lambda params: init_state(params, optimizer, objective.init(), config.train.seed),
        policy.abstract_trainable(),
    )
    frozen = {"base": policy.decoder.abstract_params()} if config.model.lora else {}
    step = make_train_step(
        logps_of_a_decoder if path in BASELINES else policy.logps,
        policy.reference_fn(config.reference.mode),
        objective,
        optimizer,
        schedule,
    )
    shape = row_shape(config, num_devices)
    new_state, sums = jax.eval_shape(step, state, frozen, abstract_batch(config, shape))
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(new_state)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(state)
    ]
    assert sums.category_pairs.shape == (len(config.data.category_names),)
    estimate = memory_estimate(config, policy, num_devices, 1000, shape)
    base = policy.decoder.abstract_params()
    whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(base))
    name = "frozen parameters" if config.model.lora else "trained parameters"
    assert estimate[name] == pytest.approx(whole / math.prod(config.mesh.shape(num_devices)[1:]), rel=0.05)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_printed_configuration_is_the_same_configuration(path: Path) -> None:
    config, _ = load(path)
    assert parse_config(yaml.safe_load(dump_config(config)), "printed") == config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_first_lines_say_what_it_is_for(path: Path) -> None:
    first = [line.partition(":")[0] for line in path.read_text().splitlines()[:4]]
    assert first == ["# What", "# Hardware", "# Command", "# Expect"]


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_shipped_evaluation_loads_and_says_what_it_is_for(path: Path) -> None:
    assert load_settings(SafetyConfig, path).prompts.path
    head = path.read_text().splitlines()[:4]
    assert [line.split(":")[0] for line in head] == ["# What", "# Hardware", "# Command", "# Expect"]
