"""Cat-DPO in a hand-written optax loop on a Flax Linen model: the margin of each category adapts by itself.

Responses are abstract tokens, and every safe token has an unsafe twin. An unsafe response of the easy category is
made of twins, one of the hard category holds a single twin: it takes longer to learn and gets the larger margin.
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxalign import adaptive
from jaxalign.losses import cat_dpo_loss

BETA, PAIRS, LENGTH, SAFE_TOKENS = 0.1, 64, 6, 8
VOCABULARY = 2 + 2 * SAFE_TOKENS  # one prompt for each category, the safe tokens, their twins
OPTIMIZER = optax.adam(3e-3)
RULE = adaptive.margin_rule(
    adaptive.MarginConfig(2, initial=0, minimum=0, maximum=2, step_size=0.05, ema_rate=0.2, target_rate=0.2)
)
Params = optax.Params
Batch = tuple[jax.Array, jax.Array]  # tokens [2, B, T] of chosen and rejected sequences, categories [B, 2]


def sample_pairs(key: jax.Array) -> Batch:
    category_key, token_key = jax.random.split(key)
    category = jax.random.randint(category_key, (PAIRS, 1), 0, 2)
    safe = jax.random.randint(token_key, (PAIRS, LENGTH), 2, 2 + SAFE_TOKENS)
    is_twin = (category == 0) | (jnp.arange(LENGTH) == 0)
    unsafe = jnp.where(is_twin, safe + SAFE_TOKENS, safe)
    tokens = jnp.stack([jnp.hstack([category, response]) for response in (safe, unsafe)])
    return tokens, jax.nn.one_hot(category[:, 0], 2)


class Policy(nn.Module):
    width: int = 32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, self.width)(tokens)
        x = nn.gelu(nn.Dense(self.width)(x + x[..., :1, :]))  # every token sees the prompt
        return nn.Dense(VOCABULARY)(x)


def response_logps(params: Params, tokens: jax.Array) -> jax.Array:
    logits, targets = Policy().apply(params, tokens)[..., :-1, :], tokens[..., 1:]
    return -optax.softmax_cross_entropy_with_integer_labels(logits, targets).sum(axis=-1)


@jax.jit
def train_step(
    params: Params, reference: Params, opt_state: optax.OptState, margins: adaptive.MarginState, batch: Batch
) -> tuple[Params, optax.OptState, adaptive.MarginState, jax.Array]:
    tokens, categories = batch
    reference_logps = response_logps(reference, tokens)  # [2, B], chosen and rejected
    margin = adaptive.pair_margins(RULE.value(margins), categories)
    safe, unsafe = jnp.zeros(PAIRS), jnp.ones(PAIRS)

    def loss_fn(params: Params) -> tuple[jax.Array, jax.Array]:
        logps = response_logps(params, tokens)
        loss = cat_dpo_loss(*logps, *reference_logps, safe, unsafe, margin, beta=BETA)
        return loss.mean(), BETA * jnp.subtract(*(logps - reference_logps))

    (loss, reward_gap), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = OPTIMIZER.update(gradients, opt_state)
    violation = adaptive.implicit_violation(reward_gap, threshold=1.0)
    stats = adaptive.category_stats(violation, categories, weight=jnp.ones(PAIRS))
    return optax.apply_updates(params, updates), opt_state, RULE.update(stats, margins), loss


params = reference = Policy().init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
opt_state, margins = OPTIMIZER.init(params), RULE.init()
print("step   loss   margins: easy hard   violations: easy hard")
for step in range(121):
    batch = sample_pairs(jax.random.key(step))
    params, opt_state, margins, loss = train_step(params, reference, opt_state, margins, batch)
    if step % 20 == 0:
        row = step, loss, *margins.margin, *margins.violation_rate
        print("{:4}  {:.3f} {:15.2f} {:.2f} {:18.2f} {:.2f}".format(*row))
