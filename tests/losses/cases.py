"""The table of all losses that the laws run over. A new loss is a new row here and nothing else."""

import dataclasses
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import losses
from tests.reference import losses as reference

LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
ALL_LOGPS = (*LOGPS, "policy_logps", "reference_logps")
UNSAFE = ("chosen_unsafe", "rejected_unsafe")
FLAGS = (*UNSAFE, "desirable", "keep")
LENGTHS = ("chosen_length", "rejected_length", "length")
WEIGHTS = ("chosen_weight", "rejected_weight")
SCORES = ("chosen_score", "rejected_score")
MARGIN_REWARDS = ("chosen_margin_reward", "rejected_margin_reward")
PAIR = dict(zip(LOGPS, (-20.0, -24.0, -21.0, -22.5), strict=True)) | {
    "chosen_length": 10.0,
    "rejected_length": 8.0,
}
DESIRABLE = {"policy_logps": -20.0, "reference_logps": -21.0, "desirable": 1.0, "length": 10.0}
UNDESIRABLE = {"policy_logps": -24.0, "reference_logps": -22.5, "desirable": 0.0}
UNSAFE_LOSER = {"chosen_unsafe": 0.0, "rejected_unsafe": 1.0}
LEANING = {"chosen_weight": 0.5, "rejected_weight": 1.5}
BETA = {"beta": 0.1}
HALF = {"weight": 0.5, "margin_weight": 0.5}
# Losses with a target pull back what has passed it.
CONFIDENT = {"direction": "at the start", "reason": "a gap beyond log((1 - e) / e) is pulled back"}
WIDE = {"direction": "at the start", "reason": "a gap beyond 1 / (2 beta) is pulled back"}
FAR = {"direction": "at the start", "reason": "log-ratios beyond 1 / (2 beta) are pulled back"}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One loss: its reference, its scalars, its values at the fixed case, and where a law has another form."""

    loss: Callable
    reference: Callable
    scalars: dict[str, float]
    fixed: list[tuple[dict[str, float], float]]
    constants: tuple[str, ...] = ()  # arguments and scalars that no gradient flows into
    refused: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)  # beside beta <= 0
    batch_level: bool = False  # a pair is compared with the whole batch: vmap over batches, not over pairs
    unpaired: bool = False  # one response a row, marked desirable or not
    # Where the gradient raises the chosen and lowers the rejected response: "everywhere", "weakly" (it may be 0),
    # "at the start" (where the policy is the reference) or "nowhere"; and why not everywhere.
    direction: str = "everywhere"
    reason: str = ""

    @property
    def arrays(self) -> list[str]:
        parameters = inspect.signature(self.loss).parameters.values()
        return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    @property
    def logps(self) -> list[int]:
        """Positions of the log-probabilities among the arrays."""
        return [i for i, name in enumerate(self.arrays) if name in ALL_LOGPS]

    def __call__(self, *arrays, **scalars) -> jax.Array:
        return self.loss(*arrays, **self.scalars | scalars)

    def exactly(self, *arrays) -> np.ndarray:
        return self.reference(*arrays, **self.scalars)


NUM_PAIRS = 16  # one size for most laws: every new shape compiles every operation anew


def inputs(case: Case, num_pairs: int = NUM_PAIRS, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arguments by name: float64 arrays of numbers that float32 and the reference read alike."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name in case.arrays:
        if name in ALL_LOGPS:
            values = rng.uniform(-70.0, -10.0, num_pairs)
        elif name in FLAGS:
            values = rng.permutation(np.arange(num_pairs) % 2)
        elif name in LENGTHS:
            values = rng.integers(4, 40, num_pairs)
        elif name == "chosen_score":
            values = rng.uniform(3.0, 6.0, num_pairs)
        elif name == "reward_margin":
            values = rng.uniform(-4.0, 6.0, num_pairs)
        else:
            values = rng.uniform(0.0, 2.0, num_pairs)
        arrays[name] = values.astype(np.float32).astype(np.float64)
    return arrays


def as_jax(arrays: dict[str, np.ndarray], dtype=jnp.float32) -> dict[str, jax.Array]:
    return {name: jnp.asarray(array, dtype) for name, array in arrays.items()}


def gradients(case: Case, arrays: dict[str, jax.Array]) -> list[jax.Array]:
    """Gradients of the summed loss by every log-probability, in the order of the arguments."""
    return list(jax.grad(lambda *a: case(*a).sum(), argnums=case.logps)(*arrays.values()))


def value_deviation(case: Case, dtype=jnp.float32, seed: int = 0) -> float:
    """Largest deviation of the loss from the float64 reference, relative where the value exceeds 1."""
    arrays = inputs(case, seed=seed)
    return deviation(case(*as_jax(arrays, dtype).values()), case.exactly(*arrays.values()))


def gradient_deviation(case: Case, dtype=jnp.float32, seed: int = 0) -> float:
    """The same of the gradients by the log-probabilities; the reference's are complex steps, exact in float64."""
    arrays = inputs(case, seed=seed)
    expected = reference.gradient(case.exactly, list(arrays.values()), case.logps)
    return deviation(np.stack(gradients(case, as_jax(arrays, dtype))), np.stack(expected))


def deviation(value, expected: np.ndarray) -> float:
    value = np.asarray(value, np.float64)
    return float(np.max(np.abs(value - expected) / np.maximum(1.0, np.abs(expected))))


CASES = {
    "dpo": Case(losses.dpo_loss, reference.dpo, BETA, [({}, 0.575939)]),
    "safe_dpo": Case(
        losses.safe_dpo_loss,
        reference.safe_dpo,
        BETA | {"delta": 2.0},
        [(UNSAFE_LOSER | {"delta": 10.0}, 9.750058), (UNSAFE_LOSER | {"delta": 1.0}, 1.136871)],
        constants=(*UNSAFE, "delta"),
    ),
    "cat_dpo": Case(
        losses.cat_dpo_loss,
        reference.cat_dpo,
        BETA,
        [(UNSAFE_LOSER | {"margin": 10.0}, 9.750058), (UNSAFE_LOSER | {"margin": 1.0}, 1.136871)],
        constants=(*UNSAFE, "margin"),
    ),
    "b_dpo": Case(
        losses.b_dpo_loss,
        reference.b_dpo,
        BETA | {"scale": 1.5},
        [
            ({"scale": 1.0, "chosen_weight": 1.0, "rejected_weight": 1.0}, 0.575939),
            (LEANING | {"scale": 1.0}, 0.565071),
        ],
        constants=(*WEIGHTS, "scale"),
    ),
    "cat_b_dpo": Case(
        losses.cat_b_dpo_loss,
        reference.cat_b_dpo,
        BETA | {"scale": 1.5},
        [(UNSAFE_LOSER | LEANING | {"margin": 1.0, "scale": 1.0}, 1.119960)],
        constants=(*UNSAFE, "margin", *WEIGHTS, "scale"),
    ),
    "bfpo": Case(
        losses.bfpo_loss,
        reference.bfpo,
        BETA,
        [
            ({"chosen_unsafe": 0.0, "rejected_unsafe": 0.0}, 6.25),
            ({"chosen_unsafe": 0.0, "rejected_unsafe": 1.0}, 56.25),
            ({"chosen_unsafe": 1.0, "rejected_unsafe": 0.0}, 156.25),
            ({"chosen_unsafe": 1.0, "rejected_unsafe": 1.0}, 56.25),
        ],
        constants=UNSAFE,
        direction="nowhere",
        reason="the target of the gap is negative where the chosen response is unsafe",
    ),
    "cdpo": Case(
        losses.cdpo_loss,
        reference.cdpo,
        BETA | {"label_smoothing": 0.1},
        [({}, 0.600939)],
        refused={"label_smoothing": (-0.1, 0.5)},
        **CONFIDENT,
    ),
    "robust_dpo": Case(
        losses.robust_dpo_loss,
        reference.robust_dpo,
        BETA | {"label_smoothing": 0.1},
        [({}, 0.544689)],
        refused={"label_smoothing": (-0.1, 0.5, 1.0)},
    ),
    "exo": Case(
        losses.exo_loss,
        reference.exo,
        BETA | {"label_smoothing": 1e-3},
        [({}, 2.339545)],
        refused={"label_smoothing": (0.0, 0.5)},
        **CONFIDENT,
    ),
    "ipo": Case(
        losses.ipo_loss,
        reference.ipo,
        BETA,
        [({}, 6.25)],
        **WIDE,
    ),
    "ipo_average": Case(
        losses.ipo_average_loss,
        reference.ipo_average,
        BETA,
        [({}, 22.207656)],
        constants=LENGTHS[:2],
        **WIDE,
    ),
    "sppo": Case(
        losses.sppo_loss,
        reference.sppo,
        BETA,
        [({}, 28.25)],
        **FAR,
    ),
    "cal_dpo": Case(
        losses.cal_dpo_loss,
        reference.cal_dpo,
        BETA,
        [({}, 14.203890)],
        **FAR,
    ),
    "hinge": Case(
        losses.hinge_loss,
        reference.hinge,
        BETA,
        [({}, 0.75), (PAIR | {"policy_chosen_logps": -5.0}, 0.0)],
        direction="weakly",
        reason="a pair beyond the margin has no gradient",
    ),
    "discopop": Case(
        losses.discopop_loss,
        reference.discopop,
        {"beta": 0.02, "temperature": 0.05},
        [(BETA, 0.777443)],
        refused={"temperature": (0.0, -0.05)},
        direction="nowhere",
        reason="the loss has a bump at a gap of 0, found by search, where the gradient points back",
    ),
    "sft": Case(losses.sft_loss, reference.sft, {}, [(DESIRABLE, 2.0)], constants=("length",), unpaired=True),
    "simpo": Case(
        losses.simpo_loss,
        reference.simpo,
        {"beta": 2.5, "gamma": 1.375},
        [({}, 0.281150)],
        constants=LENGTHS[:2],
    ),
    "alphapo": Case(
        losses.alphapo_loss,
        reference.alphapo,
        {"beta": 1.0, "gamma": 0.5, "alpha": 0.1},
        [({"beta": 2.5, "gamma": 1.375, "alpha": 0.25}, 0.035943)],
        constants=LENGTHS[:2],
    ),
    "orpo": Case(
        losses.orpo_loss,
        reference.orpo,
        {"lam": 0.1},
        [({}, 2.028875)],
        constants=LENGTHS[:2],
        refused={"lam": (-0.1,)},
    ),
    "cpo": Case(
        losses.cpo_loss,
        reference.cpo,
        BETA | {"alpha": 0.5},
        [({"alpha": 0.0}, 0.513015), ({"alpha": 1.0}, 2.513015)],
        constants=("chosen_length",),
        refused={"alpha": (-0.5,)},
    ),
    "rpo": Case(
        losses.rpo_loss,
        reference.rpo,
        BETA | {"alpha": 0.5},
        [({"alpha": 1.0}, 2.575939)],
        constants=("chosen_length",),
        refused={"alpha": (-0.5,)},
    ),
    "dpop": Case(
        losses.dpop_loss,
        reference.dpop,
        BETA | {"lam": 5.0},
        [({}, 0.575939)],
        refused={"lam": (-1.0,)},
    ),
    "bounded_dpo": Case(
        losses.bounded_dpo_loss,
        reference.bounded_dpo,
        BETA | {"lam": 0.5},
        [({}, 0.621339)],
        refused={"lam": (0.0, 1.0)},
        direction="weakly",
        reason="a rejected response that has lost its probability is left alone",
    ),
    "nca": Case(
        losses.nca_loss,
        reference.nca,
        BETA,
        [({}, 1.327074)],
        direction="at the start",
        reason="a chosen reward beyond log 2 is pulled back",
    ),
    "apo_zero": Case(losses.apo_zero_loss, reference.apo_zero, BETA, [({}, 0.937591)]),
    "apo_down": Case(
        losses.apo_down_loss,
        reference.apo_down,
        BETA,
        [({}, 0.962803)],
        direction="at the start",
        reason="the chosen response is lowered as well",
    ),
    "bco_pair": Case(
        losses.bco_pair_loss,
        reference.bco_pair,
        BETA | {"reward_shift": 0.3},
        [({"reward_shift": 0.0}, 1.265354)],
        constants=("reward_shift",),
    ),
    "kto": Case(
        losses.kto_loss,
        reference.kto,
        BETA | {"kl": 0.2, "desirable_weight": 1.0, "undesirable_weight": 1.5},
        [(DESIRABLE, 0.480011), (UNDESIRABLE | {"undesirable_weight": 1.0}, 0.457602)],
        constants=("desirable", "kl", "desirable_weight", "undesirable_weight"),
        refused={"desirable_weight": (-1.0,), "undesirable_weight": (-1.0,)},
        unpaired=True,
    ),
    "bco": Case(
        losses.bco_loss,
        reference.bco,
        BETA | {"reward_shift": 0.3},
        [(DESIRABLE | {"reward_shift": 0.0}, 0.644397), (UNDESIRABLE | {"reward_shift": 0.0}, 0.620957)],
        constants=("desirable", "reward_shift"),
        unpaired=True,
    ),
    "apo_zero_unpaired": Case(
        losses.apo_zero_unpaired_loss,
        reference.apo_zero_unpaired,
        BETA,
        [(DESIRABLE, 0.475021), (UNDESIRABLE, 0.462570)],
        constants=("desirable",),
        unpaired=True,
    ),
    "r_dpo": Case(
        losses.r_dpo_loss,
        reference.r_dpo,
        BETA | {"alpha": 0.02},
        [({}, 0.593650), ({"alpha": -0.02}, 0.558623)],
        constants=LENGTHS[:2],
    ),
    "sigmoid_norm": Case(
        losses.sigmoid_norm_loss, reference.sigmoid_norm, BETA, [({}, 0.678875)], constants=LENGTHS[:2]
    ),
    "odpo": Case(
        losses.odpo_loss,
        reference.odpo,
        BETA | {"alpha": 0.7},
        [({"alpha": 1.0, "chosen_score": 5.0, "rejected_score": 3.0}, 0.939070)],
        constants=SCORES,
        refused={"alpha": (-1.0,)},
    ),
    "madpo": Case(
        losses.madpo_loss,
        reference.madpo,
        BETA | {"tau": 2.0, "lam": 1.0, "minimum": 0.5, "maximum": 2.0},
        [({"reward_margin": m}, 0.5759390 * w) for m, w in [(4, 0.932075), (2, 1.0), (0, 1.0), (-3, 1.0)]],
        constants=("reward_margin", "tau", "lam", "minimum", "maximum"),
        refused={"tau": (0.0,), "lam": (0.0,), "minimum": (0.0, 1.0), "maximum": (1.0, 0.5)},
    ),
    "modpo": Case(
        losses.modpo_loss,
        reference.modpo,
        BETA | {"weight": 0.8, "margin_weight": 0.2},
        # By hand: R_w = (.1 * 1 - .5 * 1) / .5 = -.8 and R_l = (.1 * -1.5 - .5 * .5) / .5 = -.8.
        [({"chosen_margin_reward": 1.0, "rejected_margin_reward": 0.5} | HALF, 0.693147)],
        constants=(*MARGIN_REWARDS, "weight", "margin_weight"),
        refused={"weight": (0.0, -1.0)},
    ),
    "group_dro": Case(
        losses.group_dro_loss,
        reference.weighted_dpo,
        BETA,
        [({"group_weight": 1.0}, 0.575939), ({"group_weight": 1.5}, 0.863909)],
        constants=("group_weight",),
    ),
    "beta_dpo": Case(
        losses.beta_dpo_loss,
        reference.weighted_dpo,
        BETA,
        [({"keep": 1.0}, 0.575939), ({"keep": 0.0}, 0.0)],
        constants=("keep",),
        direction="weakly",
        reason="a pair that is filtered out has no gradient",
    ),
    "aot": Case(losses.aot_loss, reference.aot, BETA, [({}, 0.575939)], batch_level=True),
    "aot_unpaired": Case(
        losses.aot_unpaired_loss, reference.aot_unpaired, BETA, [({}, 0.575939)], batch_level=True
    ),
}
