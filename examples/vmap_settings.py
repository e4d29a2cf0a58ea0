"""Sixteen settings of the margin rule trained at once: the whole training run is a function under `jax.vmap`.

Responses are abstract tokens, and every safe token has an unsafe twin. An unsafe response of the easy category is
made of twins, one of the hard category holds a single twin. Each entry of the printed tables is a training run.
"""

import jax
import jax.numpy as jnp

from jaxalign import adaptive
from jaxalign.losses import cat_dpo_loss

BETA, PAIRS, LENGTH, SAFE_TOKENS, STEPS = 0.1, 64, 6, 8, 200
STEP_SIZES = jnp.array([0.01, 0.02, 0.05, 0.1])
TARGET_RATES = jnp.array([0.05, 0.1, 0.2, 0.4])
State = tuple[jax.Array, adaptive.MarginState]  # the policy, a table of logits [2, V], and the margins


def sample_pairs(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Categories `[B]` and tokens `[2, B, T]` of the chosen and the rejected responses."""
    category_key, token_key = jax.random.split(key)
    category = jax.random.randint(category_key, (PAIRS,), 0, 2)
    safe = jax.random.randint(token_key, (PAIRS, LENGTH), 0, SAFE_TOKENS)
    is_twin = (category == 0)[:, None] | (jnp.arange(LENGTH) == 0)
    return category, jnp.stack([safe, jnp.where(is_twin, safe + SAFE_TOKENS, safe)])


def train(step_size: jax.Array, target_rate: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Losses `[STEPS]` and margins `[STEPS, 2]` of one run; the settings may be traced numbers."""
    rule = adaptive.margin_rule(
        adaptive.MarginConfig(
            2, initial=0, minimum=0, maximum=6, step_size=step_size, ema_rate=0.2, target_rate=target_rate
        )
    )

    def train_step(state: State, key: jax.Array) -> tuple[State, tuple[jax.Array, jax.Array]]:
        (table, margins), (category, tokens) = state, sample_pairs(key)
        categories = jax.nn.one_hot(category, 2)
        margin = adaptive.pair_margins(rule.value(margins), categories)
        safe, unsafe = jnp.zeros(PAIRS), jnp.ones(PAIRS)

        def loss_fn(table: jax.Array) -> tuple[jax.Array, jax.Array]:
            logps = jax.nn.log_softmax(table)[category[:, None], tokens].sum(axis=-1)
            reference_logps = jnp.full_like(logps, -LENGTH * jnp.log(2 * SAFE_TOKENS))
            loss = cat_dpo_loss(*logps, *reference_logps, safe, unsafe, margin, beta=BETA)
            return loss.mean(), BETA * jnp.subtract(*(logps - reference_logps))

        (loss, reward_gap), gradient = jax.value_and_grad(loss_fn, has_aux=True)(table)
        violation = adaptive.implicit_violation(reward_gap, threshold=1.0, temperature=0.1)
        margins = rule.update(adaptive.category_stats(violation, categories, weight=unsafe), margins)
        return (table - 20.0 * gradient, margins), (loss, margins.margin)

    start = jnp.zeros((2, 2 * SAFE_TOKENS)), rule.init()
    return jax.lax.scan(train_step, start, jax.random.split(jax.random.key(0), STEPS))[1]


settings = jnp.meshgrid(STEP_SIZES, TARGET_RATES, indexing="ij")
losses, margins = jax.jit(jax.vmap(jax.vmap(train)))(*settings)  # [4, 4, STEPS] and [4, 4, STEPS, 2]

print(f"loss at the start {losses[..., 0].mean():.3f}, at the end {losses[..., -1].mean():.3f}")
for category, name in enumerate(["easy", "hard"]):
    print(f"\nmargin of the {name} category: largest, and at the end")
    print("step size  target rate " + "".join(f"{rate:>10.2f} " for rate in TARGET_RATES))
    for step_size, row in zip(STEP_SIZES, margins[..., category], strict=True):
        shown = (f"{run.max():6.2f} {run[-1]:.2f}" for run in row)
        print(f"{step_size:9.2f}              " + "".join(shown))

alone = train(STEP_SIZES[2], TARGET_RATES[1])[1]
print(f"\nlargest difference to a run alone: {jnp.abs(alone - margins[2, 1]).max():.0e}")
