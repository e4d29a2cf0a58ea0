"""The table of the losses of TRL, each beside the form of ours that it equals. No difference is explained here.

Those where no form of ours is equal, such as a mean over all tokens of a batch, are tests of their own.
"""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import losses
from tests.losses import trl_losses
from tests.losses.cases import LOGPS, deviation
from tests.losses.trl_losses import Arrays, Outcome

BETA = {"beta": 0.1}
SIMPO = {"beta": 2.5, "gamma": 1.375}
KTO = {"desirable_weight": 1.0, "undesirable_weight": 1.5}
KL_LOGPS = np.array([[-30.0, -31.0], [-30.5, -31.25]])  # of policy and reference: their KL estimate is 0.375


@dataclasses.dataclass(frozen=True)
class Counterpart:
    """A loss of TRL, run by TRL, and the loss of ours with the scalars that make it the same."""

    trl: Callable[[Arrays], Outcome]
    loss: Callable[..., jax.Array]
    scalars: dict[str, float]
    unpaired: bool = False
    batch_level: bool = False  # the mean over a batch is compared instead of each pair
    tolerance: float = 1e-13  # of the scaled deviation

    def ours(self, arrays: Arrays) -> Outcome:
        """Our losses in float64 and their gradient in the log-probs of the policy, one pair or response each."""
        parameters = inspect.signature(self.loss).parameters.values()
        names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        policy = [name for name in arrays if name.startswith("policy")]

        def total(logps: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            given = arrays | logps
            value = self.loss(*(given[name] for name in names), **self.scalars)
            return value.sum(), value

        with jax.enable_x64(True):
            logps = {name: jnp.asarray(arrays[name]) for name in policy}
            gradients, value = jax.tree.map(np.asarray, jax.jit(jax.grad(total, has_aux=True))(logps))
        gradient = np.squeeze([gradients[name] for name in policy])
        return Outcome(value.mean(), gradient / len(value)) if self.batch_level else Outcome(value, gradient)

    def inputs(self, *, extreme: bool) -> Arrays:
        pairs = extreme_pairs() if extreme else random_pairs()
        if self.batch_level:  # equal gaps leave the order, and with it the gradient, open
            order = np.arange(len(pairs["chosen_length"]))
            pairs |= {name: pairs[name] - order / 2**k for k, name in enumerate(LOGPS[:2], start=5)}
        return responses_of(pairs) if self.unpaired else pairs


def random_pairs(num_pairs: int = 16, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    pairs = {name: rng.uniform(-70.0, -10.0, num_pairs) for name in LOGPS}
    return pairs | {name: rng.integers(1, 1001, num_pairs) for name in ("chosen_length", "rejected_length")}


def extreme_pairs() -> Arrays:
    """Log-ratios of -1000, 0 and 1000 nats for each response, lengths of 1 and 1000 tokens."""
    log_probs = [(-1.0, -1001.0), (-1001.0, -1.0), (-40.0, -40.0)]  # under policy and reference
    rows = list(itertools.product(log_probs, log_probs, [(1, 1000), (1000, 1)]))
    chosen, rejected, lengths = (np.array(column) for column in zip(*rows, strict=True))
    pairs = dict(zip(LOGPS, (chosen[:, 0], rejected[:, 0], chosen[:, 1], rejected[:, 1]), strict=True))
    return pairs | {"chosen_length": lengths[:, 0], "rejected_length": lengths[:, 1]}


def responses_of(pairs: Arrays) -> Arrays:
    """The responses of pairs, one a row: the chosen ones are desirable."""
    num_pairs = len(pairs["chosen_length"])
    both = {
        name: np.concatenate([pairs[chosen], pairs[chosen.replace("chosen", "rejected")]])
        for name, chosen in [
            ("policy_logps", "policy_chosen_logps"),
            ("reference_logps", "reference_chosen_logps"),
            ("length", "chosen_length"),
        ]
    }
    return both | {"desirable": np.repeat([1.0, 0.0], num_pairs)}


def without_reference(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A loss of log-ratios as one of log-probs: as if the reference were certain of every response."""
    lengths = [name for name in inspect.signature(loss).parameters if name.endswith("_length")]

    def of_policy(
        policy_chosen_logps: jax.Array,
        policy_rejected_logps: jax.Array,
        chosen_length: jax.Array,
        rejected_length: jax.Array,
        **scalars: float,
    ) -> jax.Array:
        zero = jnp.zeros_like(policy_chosen_logps)
        of_tokens = (chosen_length, rejected_length) if lengths else ()
        return loss(policy_chosen_logps, policy_rejected_logps, zero, zero, *of_tokens, **scalars)

    of_policy.__name__ = loss.__name__
    return of_policy


def chosen_likelihood(policy_chosen_logps: jax.Array, chosen_length: jax.Array) -> jax.Array:
    return losses.sft_loss(policy_chosen_logps, chosen_length)


def odds_ratio(
    policy_chosen_logps: jax.Array,
    policy_rejected_logps: jax.Array,
    chosen_length: jax.Array,
    rejected_length: jax.Array,
    *,
    lam: float,
) -> jax.Array:
    """Our ORPO without its likelihood term, which TRL adds elsewhere."""
    whole = losses.orpo_loss(
        policy_chosen_logps, policy_rejected_logps, chosen_length, rejected_length, lam=lam
    )
    return whole - losses.sft_loss(policy_chosen_logps, chosen_length)


def dpo(loss_type: str, loss: Callable, *, batch_level: bool = False, **scalars: float) -> Counterpart:
    settings = BETA | scalars

    def trl(arrays: Arrays) -> Outcome:
        if batch_level:
            return trl_losses.dpo(arrays, loss_type, **settings)
        return trl_losses.each_alone(trl_losses.dpo, arrays, loss_type, **settings)

    ours = {} if loss is chosen_likelihood else settings
    return Counterpart(trl, loss, ours, batch_level=batch_level)


def cpo(loss_type: str, loss: Callable, settings: dict[str, float], **scalars: float) -> Counterpart:
    return Counterpart(functools.partial(trl_losses.cpo, loss_type=loss_type, **settings), loss, scalars)


def kto(loss_type: str, loss: Callable, **scalars: float) -> Counterpart:
    def trl(arrays: Arrays) -> Outcome:
        return trl_losses.each_alone(trl_losses.kto, arrays, loss_type, KL_LOGPS, **BETA, **weights)

    weights = {name: value for name, value in scalars.items() if name in KTO}
    return Counterpart(trl, loss, BETA | scalars, unpaired=True)


COUNTERPARTS = {
    "DPO sigmoid": dpo("sigmoid", losses.dpo_loss),
    "DPO hinge": dpo("hinge", losses.hinge_loss),
    "DPO ipo": dpo("ipo", losses.ipo_average_loss),
    "DPO exo_pair": dpo("exo_pair", losses.exo_loss, label_smoothing=1e-3),
    "DPO nca_pair": dpo("nca_pair", losses.nca_loss),
    "DPO robust": dpo("robust", losses.robust_dpo_loss, label_smoothing=0.1),
    "DPO bco_pair": dpo("bco_pair", losses.bco_pair_loss),
    "DPO sppo_hard": dpo("sppo_hard", losses.sppo_loss),
    "DPO aot": dpo("aot", losses.aot_loss, batch_level=True),
    "DPO aot_unpaired": dpo("aot_unpaired", losses.aot_unpaired_loss, batch_level=True),
    "DPO apo_zero": dpo("apo_zero", losses.apo_zero_loss),
    "DPO apo_down": dpo("apo_down", losses.apo_down_loss),
    "DPO discopop": dpo("discopop", losses.discopop_loss, temperature=0.05),
    "DPO sft": dpo("sft", chosen_likelihood),
    "DPO sigmoid_norm": dpo("sigmoid_norm", losses.sigmoid_norm_loss),
    "CPO sigmoid": cpo("sigmoid", losses.cpo_loss, BETA, beta=0.1, alpha=0.0),
    "CPO sigmoid, smoothed": cpo(
        "sigmoid",
        without_reference(losses.cdpo_loss),
        BETA | {"label_smoothing": 0.1},
        beta=0.1,
        label_smoothing=0.1,
    ),
    "CPO hinge": cpo("hinge", without_reference(losses.hinge_loss), BETA, beta=0.1),
    "CPO ipo": cpo("ipo", without_reference(losses.ipo_average_loss), BETA, beta=0.1),
    "CPO simpo": cpo("simpo", losses.simpo_loss, {"beta": 2.5, "simpo_gamma": 1.375}, **SIMPO),
    "CPO alphapo": cpo(
        "simpo",
        losses.alphapo_loss,
        {"beta": 2.5, "simpo_gamma": 1.375, "alpha": 0.25},
        alpha=0.25,
        **SIMPO,
    ),
    # TRL rounds to float32 before it computes.
    "ORPO": Counterpart(functools.partial(trl_losses.orpo, **BETA), odds_ratio, {"lam": 0.1}, tolerance=2e-6),
    "KTO kto": kto("kto", losses.kto_loss, kl=0.375, **KTO),
    "KTO apo_zero_unpaired": kto("apo_zero_unpaired", losses.apo_zero_unpaired_loss),
}


@functools.cache
def outcomes(name: str, *, extreme: bool) -> tuple[Outcome, Outcome]:
    """What TRL and what our loss give for the same inputs."""
    counterpart = COUNTERPARTS[name]
    arrays = counterpart.inputs(extreme=extreme)
    return counterpart.trl(arrays), counterpart.ours(arrays)


def deviations(name: str, *, extreme: bool) -> tuple[float, float]:
    """Largest deviation of our value and gradient from TRL's, over the rows where TRL's are finite."""
    theirs, ours = outcomes(name, extreme=extreme)
    finite = np.isfinite(theirs.value)
    rows = np.broadcast_to(finite, theirs.gradient.shape[-1:])
    return (
        deviation(ours.value[finite], theirs.value[finite]),
        deviation(ours.gradient[..., rows], theirs.gradient[..., rows]),
    )
