"""The options of each loss, chosen by `loss.name`: losses of the same options share a class. No formula, no state.

Defaults are those of the paper where it names one, else a common choice. `beta` is in reward per nat.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from jaxalign import adaptive
from jaxalign.settings import LaxPath, Settings

LabelSmoothing = Annotated[float, Field(gt=0, lt=0.5, description="share of pairs taken to be swapped")]
ShareOf = Annotated[float, Field(gt=0, le=1)]


class LossSettings(Settings):
    """What all losses have: the adaptive state that they read, and the unit of the reported rewards."""

    rules: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[Literal["scores", "margin_rewards"] | None] = None
    batch_level: ClassVar[bool] = False
    reads_reference: ClassVar[bool] = True

    @property
    def reward_beta(self) -> float:
        """Rewards, violations and held-out figures are this times the summed log-ratio, in every loss."""
        return 0.1

    def rule_configs(self, num_categories: int) -> dict[str, Any]:
        """Configurations of the rules whose options belong to this loss alone, by name of the rule."""
        return {}


class BetaSettings(LossSettings):
    """A loss of the summed log-ratios, whose strength is beta."""

    beta: PositiveFloat = 0.1

    @property
    def reward_beta(self) -> float:
        """The loss's own beta."""
        return self.beta


class PlainConfig(BetaSettings):
    """The losses whose one option is beta."""

    name: Literal[
        "dpo",
        "ipo",
        "ipo_average",
        "sppo",
        "cal_dpo",
        "hinge",
        "nca",
        "apo_zero",
        "apo_down",
        "apo_zero_unpaired",
        "bco_pair",
        "bfpo",
    ]


class SortedConfig(BetaSettings):
    """AOT on pairs, and on rows: the batch is sorted."""

    batch_level: ClassVar[bool] = True
    name: Literal["aot", "aot_unpaired"]


class LabelNoiseConfig(BetaSettings):
    """Conservative and robust DPO: a share of the labels is taken to be wrong."""

    name: Literal["cdpo", "robust_dpo"]
    label_smoothing: LabelSmoothing = 0.1


class RpoConfig(BetaSettings):
    """RPO: DPO with the likelihood of the chosen response."""

    name: Literal["rpo"]
    alpha: PositiveFloat = Field(default=1.0, description="weight of the likelihood")


class CpoConfig(BetaSettings):
    """CPO: DPO without a reference, with the likelihood of the chosen response."""

    reads_reference: ClassVar[bool] = False
    name: Literal["cpo"]
    alpha: NonNegativeFloat = Field(default=1.0, description="weight of the likelihood")


class ExoConfig(BetaSettings):
    """EXO on pairs."""

    name: Literal["exo"]
    label_smoothing: LabelSmoothing = 1e-3


class DiscopopConfig(BetaSettings):
    """DiscoPOP: logistic and exponential, mixed by the gap."""

    name: Literal["discopop"]
    temperature: float = Field(default=0.05, gt=0, le=1, description="width of the mixture, units of reward")


class SftConfig(LossSettings):
    """Likelihood of the chosen response alone, per token."""

    reads_reference: ClassVar[bool] = False
    name: Literal["sft"]


class SimpoConfig(LossSettings):
    """SimPO: no reference, log-probs per token, a fixed margin gamma."""

    reads_reference: ClassVar[bool] = False
    name: Literal["simpo"]
    beta: PositiveFloat = Field(default=2.5, description="reward per nat per token")
    gamma: NonNegativeFloat = Field(default=1.375, description="margin, units of reward")


class AlphapoConfig(LossSettings):
    """AlphaPO: SimPO with the shape of the reward given by alpha."""

    reads_reference: ClassVar[bool] = False
    name: Literal["alphapo"]
    beta: PositiveFloat = 2.5
    gamma: NonNegativeFloat = 0.1
    alpha: float = 0.25


class OrpoConfig(LossSettings):
    """ORPO: likelihood of the chosen response and the odds ratio of both; no reference."""

    reads_reference: ClassVar[bool] = False
    name: Literal["orpo"]
    lam: PositiveFloat = Field(default=0.1, description="weight of the odds ratio")


class DpopConfig(BetaSettings):
    """DPO-Positive: a penalty where the chosen response falls below the reference."""

    name: Literal["dpop"]
    lam: PositiveFloat = Field(default=50.0, description="weight of the penalty")


class BoundedDpoConfig(BetaSettings):
    """Bounded DPO: the rejected response is compared with a mixture, so that its pull is bounded."""

    name: Literal["bounded_dpo"]
    lam: float = Field(default=0.5, gt=0, lt=1, description="share of the policy in the mixture")


class KtoConfig(BetaSettings):
    """KTO on both rows of each pair.

    Its KL term is the running mean of the log-ratios of the batches before, over both responses, and 0 while that is
    negative: then, with unit weights, this is apo_zero_unpaired. The paper's estimate, from responses to foreign
    prompts, would cost one more forward pass of policy and reference.
    """

    rules: ClassVar[tuple[str, ...]] = ("kl",)
    name: Literal["kto"]
    desirable_weight: PositiveFloat = 1.0
    undesirable_weight: PositiveFloat = 1.0
    ema_rate: ShareOf = Field(default=0.1, description="share of the newest batch in the running KL term")

    def rule_configs(self, num_categories: int) -> dict[str, Any]:
        """The running KL term."""
        return {"kl": adaptive.KlConfig(ema_rate=self.ema_rate)}


class BcoConfig(BetaSettings):
    """BCO on both rows of each pair, with the running mean reward as its shift."""

    rules: ClassVar[tuple[str, ...]] = ("reward_shift",)
    name: Literal["bco"]
    ema_rate: ShareOf = Field(default=0.1, description="share of the newest batch in the running shift")

    def rule_configs(self, num_categories: int) -> dict[str, Any]:
        """The running shift."""
        return {"reward_shift": adaptive.RewardShiftConfig(ema_rate=self.ema_rate)}


class RDpoConfig(BetaSettings):
    """R-DPO: a margin by the difference of the lengths."""

    name: Literal["r_dpo"]
    alpha: float = Field(
        default=0.02, description="margin per token, units of reward; negative: a penalty on length"
    )


class SigmoidNormConfig(LossSettings):
    """DPO on log-ratios per token."""

    name: Literal["sigmoid_norm"]
    beta: PositiveFloat = Field(default=5.0, description="reward per nat per token")


class OdpoConfig(BetaSettings):
    """ODPO: an offset by the difference of the scores in the data."""

    reads: ClassVar[Literal["scores", "margin_rewards"] | None] = "scores"
    name: Literal["odpo"]
    alpha: PositiveFloat = Field(default=1.0, description="weight of the offset")


class MadpoConfig(BetaSettings):
    """MADPO: pairs weighted by the difference of the scores in the data."""

    reads: ClassVar[Literal["scores", "margin_rewards"] | None] = "scores"
    name: Literal["madpo"]
    tau: PositiveFloat = Field(
        default=2.0, description="score difference from which the weight departs from 1"
    )
    lam: PositiveFloat = Field(default=1.0, description="how fast it departs")
    minimum: float = Field(default=0.5, gt=0, lt=1)
    maximum: float = Field(default=2.0, gt=1)


class ModpoConfig(BetaSettings):
    """MODPO: DPO on one objective with the margin of another, the implicit reward of a model trained on it."""

    reads: ClassVar[Literal["scores", "margin_rewards"] | None] = "margin_rewards"
    name: Literal["modpo"]
    weight: PositiveFloat = Field(default=0.5, description="weight of the objective trained on")
    margin_weight: PositiveFloat = Field(
        default=0.5, description="weight of the objective of the margin model"
    )
    margin_model: LaxPath = Field(description="workdir of a run, or a Hugging Face directory")
    margin_beta: PositiveFloat = Field(default=0.1, description="reward per nat of the margin model")


class SafeDpoConfig(BetaSettings):
    """SafeDPO: one constant margin where exactly one response is unsafe."""

    name: Literal["safe_dpo"]
    delta: float = Field(default=2.0, gt=0, description="the constant margin, in units of beta * log-ratio")


class CatDpoConfig(BetaSettings):
    """Cat-DPO: an adaptive margin per harm category."""

    rules: ClassVar[tuple[str, ...]] = ("margin",)
    name: Literal["cat_dpo"]
    margin_reduce: Literal["mean", "max", "sum"] = Field(
        default="mean", description="how the margins of a pair with several categories combine"
    )


class BDpoConfig(BetaSettings):
    """B-DPO: each response has a strength of its own, from its mutual information with the prompt."""

    rules: ClassVar[tuple[str, ...]] = ("balance",)
    name: Literal["b_dpo"]


class CatBDpoConfig(BetaSettings):
    """Cat-DPO and B-DPO together."""

    rules: ClassVar[tuple[str, ...]] = ("margin", "balance")
    name: Literal["cat_b_dpo"]
    margin_reduce: Literal["mean", "max", "sum"] = Field(
        default="mean", description="how the margins of a pair with several categories combine"
    )


class GroupDroLossConfig(BetaSettings):
    """Group-robust DPO: the categories with the largest loss get the largest weight."""

    rules: ClassVar[tuple[str, ...]] = ("group_dro",)
    name: Literal["group_dro"]
    step_size: PositiveFloat = Field(default=0.01, description="of the exponentiated ascent, per nat of loss")
    maximum_factor: float = Field(
        default=10.0, ge=1, description="bound of the factor of a rare category's pairs"
    )

    def rule_configs(self, num_categories: int) -> dict[str, Any]:
        """The weights of the categories."""
        options = {"step_size": self.step_size, "maximum_factor": self.maximum_factor}
        return {"group_dro": adaptive.GroupDroConfig(num_categories=num_categories, **options)}


class BetaDpoLossConfig(BetaSettings):
    """beta-DPO: beta follows the gap of the batch, and the pairs with the oddest gaps are left out."""

    rules: ClassVar[tuple[str, ...]] = ("beta_dpo",)
    batch_level: ClassVar[bool] = True
    name: Literal["beta_dpo"]
    alpha: NonNegativeFloat = Field(default=0.6, description="how strongly beta follows, per nat")
    ema_rate: ShareOf = Field(
        default=0.1, description="share of the newest batch in the running mean and spread"
    )
    keep_fraction: ShareOf = Field(default=0.8, description="share of the pairs that are kept")
    minimum: PositiveFloat = Field(default=1e-3, description="lower bound of beta")

    def rule_configs(self, num_categories: int) -> dict[str, Any]:
        """The running mean and spread of the gap."""
        options = {
            name: getattr(self, name) for name in ("beta", "alpha", "ema_rate", "keep_fraction", "minimum")
        }
        return {"beta_dpo": adaptive.BetaDpoConfig(**options)}


LossConfig = Annotated[
    PlainConfig
    | SortedConfig
    | LabelNoiseConfig
    | RpoConfig
    | CpoConfig
    | ExoConfig
    | DiscopopConfig
    | SftConfig
    | SimpoConfig
    | AlphapoConfig
    | OrpoConfig
    | DpopConfig
    | BoundedDpoConfig
    | KtoConfig
    | BcoConfig
    | RDpoConfig
    | SigmoidNormConfig
    | OdpoConfig
    | MadpoConfig
    | ModpoConfig
    | SafeDpoConfig
    | CatDpoConfig
    | BDpoConfig
    | CatBDpoConfig
    | GroupDroLossConfig
    | BetaDpoLossConfig,
    Field(discriminator="name"),
]
