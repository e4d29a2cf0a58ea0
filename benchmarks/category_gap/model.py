"""The model of the study: a small decoder of jaxalign, its pre-training, its log-probs, its exact rates of answers.

An answer is one token, so that the rate of each kind under the policy is computed, not sampled; sampling is here too,
for making data and for checking the rates.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from world import ASK, EMPTY_PROMPT, PAD, REFUSE, TOPIC, VOCABULARY, right_steps

from jaxalign.batch import CHOSEN, PROMPT, REJECTED, Places, Rows
from jaxalign.models.config import DecoderConfig
from jaxalign.models.functional import build_decoder
from jaxalign.ops.attention import plain_places
from jaxalign.training.logps import rows_logps
from jaxalign.training.optimizer import OptimizerConfig, make_optimizer, make_schedule

Params = dict[str, Any]

CONFIG = DecoderConfig(
    vocab_size=VOCABULARY,
    hidden_size=48,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=12,
    tie_embeddings=True,
)
DECODER = build_decoder(CONFIG, compute_dtype=jnp.float32, param_dtype=jnp.float32, remat="none")


def lay_out(prompts: jax.Array, responses: jax.Array) -> Rows:
    """Rows [prompt | first | second] of prompts [B, P] and two responses each [B, 2, A], padded at their ends."""
    B, P = prompts.shape
    A = responses.shape[2]
    column = jnp.arange(A, dtype=jnp.int32)
    real = (responses != PAD).reshape(B, 2 * A)
    ones = jnp.ones((B, P), jnp.int32)
    branch = jnp.array([PROMPT] * P + [CHOSEN] * A + [REJECTED] * A, jnp.int32)
    position = jnp.concatenate([jnp.arange(P, dtype=jnp.int32), P + column, P + column])
    # The end of the prompt predicts the first token of both; each response then its own next one.
    predictor = jnp.concatenate([P - 1 + column, jnp.where(column == 0, P - 1, P + A + column - 1)])
    number = 2 * jnp.arange(B, dtype=jnp.int32)[:, None] + jnp.repeat(jnp.arange(2, dtype=jnp.int32), A)[None]
    flat = responses.reshape(B, 2 * A)
    return Rows(
        tokens=jnp.concatenate([prompts, flat], axis=1),
        places=Places(
            segment=jnp.concatenate([ones, real.astype(jnp.int32)], axis=1),
            branch=jnp.broadcast_to(branch, (B, P + 2 * A)),
            position=jnp.broadcast_to(position, (B, P + 2 * A)),
        ),
        predictor=jnp.broadcast_to(predictor, (B, 2 * A)),
        target=flat,
        response=jnp.where(real, number, -1),
    )


def response_logps(params: Params, prompts: jax.Array, responses: jax.Array) -> jax.Array:
    """[B, 2] summed log-probs (nats) of two responses [B, 2, A] to each prompt [B, P]."""
    rows = lay_out(prompts, responses)
    hidden = DECODER.hidden(params, None, rows.tokens, rows.places)
    return rows_logps(hidden, DECODER.head(params), rows, len(prompts))


def logps_alone(params: Params, responses: jax.Array) -> jax.Array:
    """[B, 2] the same after the empty prompt."""
    empty = jnp.broadcast_to(jnp.asarray(EMPTY_PROMPT), (len(responses), len(EMPTY_PROMPT)))
    return response_logps(params, empty, responses)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Asked:
    """Prompts [n, L] with their right steps [n, PHRASINGS]: what exact rates need."""

    prompts: jax.Array
    steps: jax.Array


def asked(prompts: np.ndarray) -> Asked:
    """The prompts [n, L] with what would be right."""
    return Asked(jnp.asarray(prompts), jnp.asarray(right_steps(prompts), jnp.int32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AnswerRates:
    """Exact probabilities [n] that a sampled answer refuses, or is right; else it is wrong."""

    refusal: jax.Array
    right: jax.Array


def answer_rates(params: Params, questions: Asked) -> AnswerRates:
    """The rates of the kinds of answers under the policy, by `world.answer_kinds`, without sampling."""
    first = jax.nn.softmax(_next_logits(params, questions.prompts))
    return AnswerRates(
        refusal=first[:, REFUSE:TOPIC].sum(axis=1),
        right=jnp.take_along_axis(first, questions.steps, axis=1).sum(axis=1),
    )


def divergence(params: Params, reference: Params, questions: Asked) -> jax.Array:
    """KL(policy || reference) of the answers, nats, a mean over the questions []."""
    logps, others = (jax.nn.log_softmax(_next_logits(x, questions.prompts)) for x in (params, reference))
    return (jnp.exp(logps) * (logps - others)).sum(axis=1).mean()


def sample_answers(params: Params, prompts: jax.Array, key: jax.Array) -> jax.Array:
    """[n, ANSWER_LENGTH] an answer to each prompt [n, L], sampled at temperature 1."""
    return jax.random.categorical(key, _next_logits(params, prompts)).astype(prompts.dtype)[:, None]


def _next_logits(params: Params, tokens: jax.Array) -> jax.Array:
    """[n, V] logits of what follows tokens [n, L]."""
    hidden = DECODER.hidden(params, None, tokens, plain_places(*tokens.shape))
    return jnp.matmul(hidden[:, -1], DECODER.head(params))


def pretrain(
    key: jax.Array, corpus: jax.Array, *, num_steps: int, batch_size: int = 64
) -> tuple[Params, jax.Array]:
    """Parameters after training on the answers of a corpus [N, L], and the loss of every step."""
    config = OptimizerConfig(learning_rate=4e-3, schedule="cosine", warmup_steps=min(50, num_steps // 2))
    schedule = make_schedule(config, num_steps)
    optimizer = make_optimizer(config, schedule)
    init_key, order_key = jax.random.split(key)
    params = DECODER.init(init_key)

    def loss_fn(params: Params, tokens: jax.Array) -> jax.Array:
        logits = DECODER.logits(params, None, tokens, plain_places(*tokens.shape))[:, :-1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        answered = (tokens == ASK).cumsum(axis=1)[:, :-1] > 0
        real = (tokens[:, 1:] != PAD) & answered
        return jnp.where(real, losses, 0.0).sum() / real.sum().astype(losses.dtype)

    def step(carry: tuple[Params, Any], index: jax.Array) -> tuple[tuple[Params, Any], jax.Array]:
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, corpus[index])
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts with floats
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
        return (params, opt_state), loss

    order = jax.random.randint(order_key, (num_steps, batch_size), 0, len(corpus))
    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), order)
    return params, losses
