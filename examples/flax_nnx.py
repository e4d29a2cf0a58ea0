"""Cat-DPO in a hand-written optax loop on a Flax NNX model: the margin of each category adapts by itself.

Responses are abstract tokens, and every safe token has an unsafe twin. An unsafe response of the easy category is
made of twins, one of the hard category holds a single twin: it takes longer to learn and gets the larger margin.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxalign import adaptive
from jaxalign.losses import cat_dpo_loss

BETA, PAIRS, LENGTH, SAFE_TOKENS = 0.1, 64, 6, 8
VOCABULARY = 2 + 2 * SAFE_TOKENS  # one prompt for each category, the safe tokens, their twins
RULE = adaptive.margin_rule(
    adaptive.MarginConfig(2, initial=0, minimum=0, maximum=2, step_size=0.05, ema_rate=0.2, target_rate=0.2)
)
Batch = tuple[jax.Array, jax.Array]  # tokens [2, B, T] of chosen and rejected sequences, categories [B, 2]


def sample_pairs(key: jax.Array) -> Batch:
    category_key, token_key = jax.random.split(key)
    category = jax.random.randint(category_key, (PAIRS, 1), 0, 2)
    safe = jax.random.randint(token_key, (PAIRS, LENGTH), 2, 2 + SAFE_TOKENS)
    is_twin = (category == 0) | (jnp.arange(LENGTH) == 0)
    unsafe = jnp.where(is_twin, safe + SAFE_TOKENS, safe)
    tokens = jnp.stack([jnp.hstack([category, response]) for response in (safe, unsafe)])
    return tokens, jax.nn.one_hot(category[:, 0], 2)


class Policy(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, width: int = 32):
        self.embed = nnx.Embed(VOCABULARY, width, rngs=rngs)
        self.hidden = nnx.Linear(width, width, rngs=rngs)
        self.head = nnx.Linear(width, VOCABULARY, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        return self.head(nnx.gelu(self.hidden(x + x[..., :1, :])))  # every token sees the prompt


def response_logps(policy: Policy, tokens: jax.Array) -> jax.Array:
    logits, targets = policy(tokens)[..., :-1, :], tokens[..., 1:]
    return -optax.softmax_cross_entropy_with_integer_labels(logits, targets).sum(axis=-1)


@nnx.jit
def train_step(
    policy: Policy, reference: Policy, optimizer: nnx.Optimizer, margins: adaptive.MarginState, batch: Batch
) -> tuple[jax.Array, adaptive.MarginState]:
    tokens, categories = batch
    reference_logps = response_logps(reference, tokens)  # [2, B], chosen and rejected
    margin = adaptive.pair_margins(RULE.value(margins), categories)
    safe, unsafe = jnp.zeros(PAIRS), jnp.ones(PAIRS)

    def loss_fn(policy: Policy) -> tuple[jax.Array, jax.Array]:
        logps = response_logps(policy, tokens)
        loss = cat_dpo_loss(*logps, *reference_logps, safe, unsafe, margin, beta=BETA)
        return loss.mean(), BETA * jnp.subtract(*(logps - reference_logps))

    (loss, reward_gap), gradients = nnx.value_and_grad(loss_fn, has_aux=True)(policy)
    optimizer.update(policy, gradients)
    violation = adaptive.implicit_violation(reward_gap, threshold=1.0)
    stats = adaptive.category_stats(violation, categories, weight=jnp.ones(PAIRS))
    return loss, RULE.update(stats, margins)


policy, reference = Policy(nnx.Rngs(0)), Policy(nnx.Rngs(0))
optimizer, margins = nnx.Optimizer(policy, optax.adam(3e-3), wrt=nnx.Param), RULE.init()
print("step   loss   margins: easy hard   violations: easy hard")
for step in range(121):
    loss, margins = train_step(policy, reference, optimizer, margins, sample_pairs(jax.random.key(step)))
    if step % 20 == 0:
        row = step, loss, *margins.margin, *margins.violation_rate
        print("{:4}  {:.3f} {:15.2f} {:.2f} {:18.2f} {:.2f}".format(*row))
