"""Data-parallel Cat-DPO under `jax.shard_map`, every communication written out: it is one `psum`.

Eight devices hold eight pairs each. What they add up are sums and counts: of the gradient, of the loss and of the
statistics that the margins adapt to. So parameters and margins follow those of training on one device.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxalign import adaptive
from jaxalign.losses import cat_dpo_loss

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

BETA, PAIRS, LENGTH, SAFE_TOKENS = 0.1, 64, 6, 8
RULE = adaptive.margin_rule(
    adaptive.MarginConfig(2, initial=0, minimum=0, maximum=2, step_size=0.05, ema_rate=0.2, target_rate=0.2)
)
State = tuple[jax.Array, adaptive.MarginState]  # the policy, a table of logits [2, V], and the margins
Batch = tuple[jax.Array, jax.Array]  # category [B], tokens [B, 2, T] of the chosen and the rejected responses


def sample_pairs(key: jax.Array) -> Batch:
    """A rejected response holds unsafe twins of the chosen tokens: all in category 0, one in category 1."""
    category_key, token_key = jax.random.split(key)
    category = jax.random.randint(category_key, (PAIRS,), 0, 2)
    safe = jax.random.randint(token_key, (PAIRS, LENGTH), 0, SAFE_TOKENS)
    is_twin = (category == 0)[:, None] | (jnp.arange(LENGTH) == 0)
    return category, jnp.stack([safe, jnp.where(is_twin, safe + SAFE_TOKENS, safe)], axis=1)


def sum_over_pairs(state: State, batch: Batch) -> dict[str, Any]:
    (table, margins), (category, tokens) = state, batch
    categories, one = jax.nn.one_hot(category, 2), jnp.ones(len(category))
    margin = adaptive.pair_margins(RULE.value(margins), categories)

    def loss_fn(table: jax.Array) -> tuple[jax.Array, jax.Array]:
        logps = jax.nn.log_softmax(table)[category[:, None, None], tokens].sum(axis=-1).T
        reference_logps = jnp.full_like(logps, -LENGTH * jnp.log(2 * SAFE_TOKENS))
        loss = cat_dpo_loss(*logps, *reference_logps, 0 * one, one, margin, beta=BETA)
        return loss.sum(), BETA * jnp.subtract(*(logps - reference_logps))

    (loss, reward_gap), gradient = jax.value_and_grad(loss_fn, has_aux=True)(table)
    violation = adaptive.implicit_violation(reward_gap, threshold=1.0, temperature=0.1)
    stats = adaptive.category_stats(violation, categories, weight=one)
    return {"gradient": gradient, "loss": loss, "pairs": one.sum(), "stats": stats}


def update(state: State, sums: dict[str, Any]) -> tuple[State, jax.Array]:
    table = state[0] - 30.0 * sums["gradient"] / sums["pairs"]
    return (table, RULE.update(sums["stats"], state[1])), sums["loss"] / sums["pairs"]


def step_on_all(state: State, batch: Batch) -> tuple[State, jax.Array]:
    here = jax.lax.pcast(state, "data", to="varying")  # else shard_map adds up the gradients unasked
    return update(state, jax.lax.psum(sum_over_pairs(here, batch), "data"))


def step_on_one(state: State, batch: Batch) -> tuple[State, jax.Array]:
    return update(state, sum_over_pairs(state, batch))


mesh, replicated, by_pair = Mesh(jax.devices(), ("data",)), PartitionSpec(), PartitionSpec("data")
step_on_all = jax.shard_map(step_on_all, mesh=mesh, in_specs=(replicated, by_pair), out_specs=replicated)
step_on_all, step_on_one = jax.jit(step_on_all), jax.jit(step_on_one)
on_all = on_one = jnp.zeros((2, 2 * SAFE_TOKENS)), RULE.init()
print(f"step   loss on {mesh.size} devices, on one   margins: easy hard")
for step in range(121):
    batch = sample_pairs(jax.random.key(step))
    (on_all, loss), (on_one, loss_of_one) = step_on_all(on_all, batch), step_on_one(on_one, batch)
    if step % 20 == 0:
        easy, hard = on_all[1].margin
        print(f"{step:4} {loss:19.4f} {loss_of_one:11.4f} {easy:15.2f} {hard:.2f}")
table, margins = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), on_all, on_one)
print(f"largest difference: logits {table:.0e}, margins {margins.margin:.0e}")
