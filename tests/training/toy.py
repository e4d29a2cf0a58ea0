"""A preference problem of a few parameters: a unigram model, its batches, objectives and states. No tests here."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pydantic import TypeAdapter

from jaxalign.adaptive import BalanceConfig, MarginConfig
from jaxalign.batch import CHOSEN, PROMPT, REJECTED, PairBatch, Places, Rows
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import PairLoader
from jaxalign.data.settings import RowsConfig
from jaxalign.training.logps import sum_by_response
from jaxalign.training.loss_settings import LossConfig, LossSettings
from jaxalign.training.loss_table import LOSSES
from jaxalign.training.objective import Objective, ViolationConfig
from jaxalign.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from jaxalign.training.state import TrainState, init_state
from jaxalign.training.step import make_train_step, precomputed_reference

NAMES = ("Violence", "Drugs", "Privacy Violation")
K, V, L = len(NAMES), 8, 6
# No option has its default, and no two of a loss are alike: one that is ignored or swapped shows.
OPTIONS: dict[str, dict[str, Any]] = {
    "aot": {"beta": 0.3},
    "alphapo": {"beta": 1.5, "gamma": 0.4, "alpha": 0.35},
    "bco": {"beta": 0.2, "ema_rate": 0.6},
    "beta_dpo": {"beta": 0.2, "alpha": 0.3, "ema_rate": 0.7, "keep_fraction": 0.6, "minimum": 0.01},
    "bounded_dpo": {"lam": 0.3},
    "cat_b_dpo": {"margin_reduce": "max"},
    "cdpo": {"label_smoothing": 0.2},
    "cpo": {"beta": 0.2, "alpha": 0.7},
    "discopop": {"temperature": 0.3},
    "dpop": {"beta": 0.2, "lam": 7.0},
    "exo": {"label_smoothing": 0.05},
    "group_dro": {"beta": 0.2, "step_size": 0.7, "maximum_factor": 1.5},
    "ipo": {"beta": 0.3},
    "kto": {"beta": 0.2, "desirable_weight": 1.4, "undesirable_weight": 0.6, "ema_rate": 0.5},
    "madpo": {"beta": 0.2, "tau": 1.2, "lam": 0.8, "minimum": 0.4, "maximum": 2.5},
    "modpo": {"beta": 0.2, "weight": 0.7, "margin_weight": 0.3, "margin_model": "margin"},
    "odpo": {"alpha": 0.6},
    "orpo": {"lam": 0.4},
    "r_dpo": {"beta": 0.2, "alpha": 0.05},
    "robust_dpo": {"label_smoothing": 0.15},
    "rpo": {"beta": 0.2, "alpha": 0.7},
    "safe_dpo": {"delta": 1.5},
    "sigmoid_norm": {"beta": 3.0},
    "simpo": {"beta": 1.5, "gamma": 0.4},
}
MARGIN = MarginConfig(
    num_categories=K, initial=0.5, minimum=0.0, maximum=2.0, step_size=0.2, ema_rate=0.3, target_rate=0.1
)
BALANCE = BalanceConfig(scale=1.2, scale_by_gradient_weight=True, maximum_scale=4.0, ema_rate=0.2)
OPTIMIZER = OptimizerConfig(learning_rate=0.05, schedule="linear", warmup_steps=2, weight_decay=0.1)
NUM_STEPS = 8
PADDED = RowsConfig(layout="padded", share_prefix=False)


def loss_config(name: str, **options: Any) -> LossSettings:
    """The settings of a loss, as a configuration file would give them."""
    return TypeAdapter(LossConfig).validate_python({"name": name, **options})


CONFIGS = {name: loss_config(name, **OPTIONS.get(name, {})) for name in LOSSES}
KEY = jax.random.key(0)


def make_objective(name: str = "cat_b_dpo", **changes: Any) -> Objective:
    """An objective whose rules all act."""
    config = CONFIGS[name]
    rules = config.rule_configs(K)
    rules |= {
        rule: {"margin": MARGIN, "balance": BALANCE}[rule] for rule in config.rules if rule not in rules
    }
    objective = Objective(config, ViolationConfig(), rules)
    return dataclasses.replace(objective, **changes)


def make_batch(num_pairs: int = 8, *, seed: int = 0, num_padding: int = 0) -> PairBatch:
    """Random pairs as numpy, not stacked; a quarter without a category, some with two; zeros in pairs of padding."""
    rng = np.random.default_rng(seed)
    real = num_pairs - num_padding
    weight = (np.arange(num_pairs) < real).astype(np.float32)
    first, length = rng.integers(1, 3, (num_pairs, 2, 1)), rng.integers(2, 4, (num_pairs, 2, 1))
    table = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)  # the last category is absent
    categories = table[rng.permutation(num_pairs) % 4]
    tokens = rng.integers(0, V, (num_pairs, 2, L), dtype=np.int32)
    length = length * (weight > 0)[:, None, None]
    return PairBatch(
        rows=make_rows(tokens, first, length),
        alone=None,
        lengths=length[:, :, 0].astype(np.int32),
        categories=categories * weight[:, None],
        chosen_unsafe=np.zeros(num_pairs, np.float32),
        rejected_unsafe=categories.max(axis=1) * weight,
        weight=weight,
        reference_logps=rng.normal(-5.0, 2.0, (num_pairs, 2)).astype(np.float32) * weight[:, None],
        mi=rng.uniform(0.1, 1.0, (num_pairs, 2)).astype(np.float32) * weight[:, None],
        scores=np.sort(rng.normal(0.0, 3.0, (num_pairs, 2)))[:, ::-1].astype(np.float32) * weight[:, None],
        index=np.where(weight > 0, np.arange(num_pairs), -1).astype(np.int32),
    )


def make_rows(tokens: np.ndarray, first: np.ndarray, length: np.ndarray) -> Rows:
    """A row for each response, a group for each pair: tokens [B, 2, L], first and length of responses [B, 2, 1]."""
    num_pairs, column = len(tokens), np.arange(L)
    inside = (column >= first) & (column < first + length)
    place = np.arange(2)[:, None] * L + column
    number = np.arange(num_pairs)[:, None, None] * 2 + np.arange(2)[:, None]
    flat = (2 * num_pairs, L)
    segment = np.broadcast_to((column < first + length) & (length > 0), tokens.shape)
    return Rows(
        tokens=tokens.reshape(flat),
        places=Places(
            segment=segment.astype(np.int32).reshape(flat),
            branch=np.where(inside, np.array([[CHOSEN], [REJECTED]]), PROMPT).astype(np.int32).reshape(flat),
            position=np.broadcast_to(column, tokens.shape).astype(np.int32).reshape(flat),
        ),
        predictor=np.where(inside, place - 1, 0).astype(np.int32).reshape(num_pairs, 2 * L),
        target=np.where(inside, tokens, 0).reshape(num_pairs, 2 * L),
        response=np.where(inside, number, -1).astype(np.int32).reshape(num_pairs, 2 * L),
    )


def select(batch: PairBatch, index: Any) -> PairBatch:
    """Some pairs of a batch, in that order."""
    index = np.asarray(index)

    def of_pairs(x: Any) -> np.ndarray:
        x = np.asarray(x)
        return x.reshape(len(batch.weight), -1, *x.shape[1:])[index].reshape(-1, *x.shape[1:])

    chosen = jax.tree.map(of_pairs, batch)
    shift = 2 * (np.arange(len(index)) - index)[:, None]
    response = np.where(chosen.rows.response >= 0, chosen.rows.response + shift, -1).astype(np.int32)
    return dataclasses.replace(chosen, rows=dataclasses.replace(chosen.rows, response=response))


def stacked(batch: PairBatch, num_micro_batches: int = 1) -> PairBatch:
    """The batch as a step takes it, in that many micro-batches of neighbouring pairs."""
    parts = np.split(np.arange(len(batch.weight)), num_micro_batches)
    return jax.tree.map(lambda *x: np.stack(x), *[select(batch, part) for part in parts])


def make_params() -> dict[str, jax.Array]:
    """What trains: a kernel [V] and a scale []."""
    return {"kernel": 0.3 * jnp.cos(jnp.arange(V, dtype=jnp.float32)), "scale": jnp.ones(())}


def make_frozen() -> dict[str, jax.Array]:
    """What does not train."""
    return {"base": jnp.sin(jnp.arange(V, dtype=jnp.float32))}


def policy_logps(params: Any, frozen: Any, batch: PairBatch) -> jax.Array:
    """[B, 2]: every token is drawn from one softmax, whatever stands before it."""
    logits = params["kernel"] + params["scale"] * frozen["base"]
    tokens = jax.nn.log_softmax(logits)[batch.rows.target]
    return sum_by_response(tokens, batch.rows.response, len(batch.weight))


def make_optimizers() -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Clipped AdamW with warm-up and decay, and its schedule."""
    schedule = make_schedule(OPTIMIZER, NUM_STEPS)
    return make_optimizer(OPTIMIZER, schedule), schedule


def make_state(objective: Objective | None = None) -> TrainState:
    """The state before the first step, in buffers of its own."""
    objective = objective or make_objective()
    return init_state(make_params(), make_optimizers()[0], objective.init(), seed=0)


def make_step(objective: Objective | None = None, **options: Any) -> Any:
    """The step, not yet compiled."""
    return make_train_step(
        policy_logps, precomputed_reference, objective or make_objective(), *make_optimizers(), **options
    )


def make_loader(num_steps: int = NUM_STEPS, *, num_pairs: int = 20, **options: Any) -> PairLoader:
    """Packed batches of 8 pairs, with reference figures, of whose categories the last is absent."""
    rng = np.random.default_rng(1)
    dataset = make_dataset(np.array([[1, 0, 0], [0, 1, 0]])[np.arange(num_pairs) % 2])
    dataset = dataclasses.replace(
        dataset,
        reference_logps=rng.normal(-5.0, 2.0, (num_pairs, 2)).astype(np.float32),
        mi=rng.uniform(0.1, 1.0, (num_pairs, 2)).astype(np.float32),
    )
    return PairLoader(dataset, **{"batch_size": 8, "rows": RowsConfig(), "num_steps": num_steps, **options})


def make_dataset(categories: np.ndarray, seed: int = 0) -> TokenizedDataset:
    """Random tokenised pairs with these categories [n, K], after prompts that are not empty."""
    rng = np.random.default_rng(seed)
    num_pairs = len(categories)
    draw = [
        tuple(rng.integers(0, V, rng.integers(1, 4), dtype=np.int32) for _ in range(num_pairs)) for _ in "pcr"
    ]
    return TokenizedDataset(
        *draw,
        categories=np.asarray(categories, np.float32),
        chosen_unsafe=np.zeros(num_pairs, np.float32),
        rejected_unsafe=np.ones(num_pairs, np.float32),
        category_names=NAMES,
        pad_id=0,
        empty_prompt_ids=np.zeros(1, np.int32),
        origins=tuple(f"toy:{i}" for i in range(num_pairs)),
        num_cut=np.zeros((num_pairs, 3), np.int32),
        skipped=(),
    )
