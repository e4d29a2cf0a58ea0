"""Every section of a run's configuration, put together and checked against each other.

A section is defined beside the code that it steers; only what belongs to no single part is defined here.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from jaxalign.adaptive import BalanceConfig, MarginConfig
from jaxalign.data.settings import DataConfig, RowsConfig
from jaxalign.errors import JaxalignError
from jaxalign.evaluation.settings import ProbeConfig, SelectionConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.parallel import MeshConfig
from jaxalign.settings import LaxPath, Settings
from jaxalign.training.checkpoint import CheckpointConfig
from jaxalign.training.loop import TrainConfig
from jaxalign.training.loss_settings import LossConfig
from jaxalign.training.objective import Objective, ViolationConfig
from jaxalign.training.optimizer import OptimizerConfig
from jaxalign.training.reference import ReferenceConfig
from jaxalign.training.trackers import LoggingConfig

Rule = TypeVar("Rule", MarginConfig, BalanceConfig)


class ConfigError(JaxalignError, ValueError):
    """A configuration that cannot be run; says the key, what was given and what is allowed."""


class ModelConfig(Settings):
    """The model to train."""

    path: LaxPath = Field(description="Hugging Face directory with safetensors, or a .gguf file")
    tokenizer: LaxPath | None = Field(
        default=None, description="directory of another tokenizer than the model's own"
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="of the computation")
    param_dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of the parameters")
    remat: Literal["none", "dots", "full"] = Field(
        default="full",
        description="what the backward pass recomputes: nothing, all but matrix products and attention, or all",
    )
    attention: Literal["auto", "dense", "blockwise", "splash", "cudnn"] = Field(
        default="auto", description="kernel; auto: splash on TPU, cudnn on GPU, blockwise elsewhere"
    )
    logps_chunk_size: int = Field(
        default=1024, ge=1, description="response tokens of a device that go through the head at a time"
    )
    lora: LoraConfig | None = Field(default=None, description="null: train all parameters")


class MarginSettings(Settings):
    """The adaptive margins, see `jaxalign.adaptive.MarginConfig`."""

    initial: float = 0.0
    minimum: float = 0.0
    maximum: float = 0.5
    step_size: float = 0.1
    ema_rate: float = 0.1
    target_rate: float | dict[str, float] = Field(
        default=0.05, description="accepted violation rate: one number, or one by category with `default`"
    )
    update: Literal["additive", "multiplicative"] = "additive"
    normalize_mean: float | None = None
    warmup_pairs: float = Field(
        default=0.0,
        description="categories of pairs, or of judged answers, to be seen before the margins move; one of two "
        "categories counts twice",
    )

    def targets_of(self, names: Sequence[str]) -> dict[str, float]:
        """The target rates of these categories."""
        if not isinstance(self.target_rate, dict):
            return dict.fromkeys(names, self.target_rate)
        default = self.target_rate.get("default", 0.0)
        return {name: self.target_rate.get(name, default) for name in names}


class BalanceSettings(Settings):
    """Weights and scale of B-DPO, see `jaxalign.adaptive.BalanceConfig`."""

    weights: Literal["ratio", "softmax", "power", "none"] = "ratio"
    floor: float | None = None
    temperature: float | None = None
    alpha: float | None = None
    minimum_weight: float = 0.0
    maximum_weight: float = 2.0
    scale: float = 1.0
    scale_by_gradient_weight: bool = False
    maximum_scale: float | None = None
    ema_rate: float = 0.01


class AdaptiveConfig(Settings):
    """The adaptive state: what counts as a violation, how margins and balance follow."""

    signal: Literal["implicit_reward", "probe", "both"] = Field(
        default="implicit_reward",
        description="where the margin rule's violations come from: the pairs of each batch, judged answers, or both",
    )
    probe: ProbeConfig | None = Field(default=None, description="of signals probe and both")
    violation: ViolationConfig = ViolationConfig()
    margin: MarginSettings = MarginSettings()
    balance: BalanceSettings = BalanceSettings()
    mi_source: Literal["reference", "policy"] = Field(
        default="reference",
        description="whose mutual information the balance reads; policy: one more forward pass each step",
    )


class EvaluationConfig(Settings):
    """Held-out figures during training, which need held-out data; and the size of batches where nothing trains."""

    every_steps: int | None = Field(default=None, ge=1, description="null: only before and after")
    max_pairs: int | None = Field(
        default=None,
        ge=1,
        description="evaluate a random choice of so many held-out pairs; null: all of them",
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="pairs at a time, in the passes before training too; null: four micro-batches of training",
    )


class Config(Settings):
    """A whole run."""

    model: ModelConfig
    data: DataConfig
    loss: LossConfig
    adaptive: AdaptiveConfig = AdaptiveConfig()
    reference: ReferenceConfig = ReferenceConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig
    rows: RowsConfig = RowsConfig()
    mesh: MeshConfig = MeshConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    selection: SelectionConfig | None = Field(default=None, description="null: the last state is the one")
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        # Compared with the defaults, not by what was given: a configuration with every default written out is valid.
        given = {
            "margin": self.adaptive.margin != MarginSettings() and "margin" not in self.loss.rules,
            "balance": self.adaptive.balance != BalanceSettings() and "balance" not in self.loss.rules,
        }
        given["mi_source"] = self.adaptive.mi_source != "reference" and "balance" not in self.loss.rules
        given["signal"] = self.adaptive.signal != "implicit_reward" and "margin" not in self.loss.rules
        for section, useless in given.items():
            if useless:
                raise ValueError(f"adaptive.{section} has no effect with loss {self.loss.name}; remove it")
        self._check_selection()
        if self.model.param_dtype == "bfloat16" and self.model.lora is None:
            raise ValueError(
                "model.param_dtype bfloat16 needs model.lora: updates of all parameters would vanish in bf16 "
                "rounding; use param_dtype float32 (model.dtype bfloat16 computes in bf16 all the same)"
            )
        if self.reference.mode == "adapter_base" and self.model.lora is None:
            raise ValueError("reference.mode adapter_base needs model.lora; use precomputed or online")
        if self.reference.mode == "none" and self.loss.reads_reference:
            raise ValueError(
                f"reference.mode none, but loss {self.loss.name} compares the policy with a reference; use "
                "precomputed, or a loss without one: sft, simpo, alphapo, orpo, cpo"
            )
        if (
            self.reference.file is not None
            and self.reference.mode != "precomputed"
            and not self.reads_reference_mi
        ):
            raise ValueError(
                f"reference.file has no effect with reference.mode {self.reference.mode} and loss "
                f"{self.loss.name}, which reads no mutual information; remove it"
            )
        num_steps, warmup_steps = self.train.num_steps, self.optimizer.warmup_steps
        if num_steps is not None and warmup_steps >= num_steps:
            raise ValueError(
                f"optimizer.warmup_steps={warmup_steps} leaves nothing of train.num_steps={num_steps}; lower it"
            )
        if self.loss.batch_level and self.train.num_micro_batches > 1:
            raise ValueError(
                f"loss {self.loss.name} compares the pairs of a whole batch with each other: "
                f"train.num_micro_batches={self.train.num_micro_batches} would change its meaning; set it to 1"
            )
        self._check_probe()
        self._check_evaluation()
        self._check_balance()
        self._check_sampling()
        self.make_objective()  # the rules check their own options
        return self

    def make_objective(self) -> Objective:
        """The configured loss with its adaptive rules."""
        names = self.data.category_names
        rules = self.loss.rule_configs(len(names))
        if "margin" in self.loss.rules:
            options = self.adaptive.margin.model_dump()
            options["target_rate"] = _target_rates(self.adaptive.margin.target_rate, names)
            rules["margin"] = _make_rule("margin", MarginConfig, num_categories=len(names), **options)
        if "balance" in self.loss.rules:
            rules["balance"] = _make_rule("balance", BalanceConfig, **self.adaptive.balance.model_dump())
        probed = ("margin",) if self.adaptive.signal == "probe" else ()
        return Objective(self.loss, self.adaptive.violation, rules, left_to_probes=probed)

    @property
    def reads_reference_mi(self) -> bool:
        """Whether the loss reads mutual information under the reference."""
        return "balance" in self.loss.rules and self.adaptive.mi_source == "reference"

    @property
    def needs_reference_figures(self) -> bool:
        """Whether training reads figures of its pairs under the reference that are known before it starts."""
        read = self.reads_reference_mi or self.loss.reads == "margin_rewards"
        return self.reference.mode == "precomputed" or read

    def _check_probe(self) -> None:
        probe, signal = self.adaptive.probe, self.adaptive.signal
        if probe is None and signal != "implicit_reward":
            raise ValueError(f"adaptive.signal {signal} needs adaptive.probe: its prompts and judge")
        if probe is not None and signal == "implicit_reward":
            raise ValueError(
                "adaptive.probe has no effect with adaptive.signal implicit_reward; set signal to probe or both"
            )

    def _check_selection(self) -> None:
        selection = self.selection
        if selection is None:
            return
        if selection.by == "worst_category" and selection.targets is not None:
            raise ValueError(
                "selection.targets has no effect with selection.by worst_category; remove it, or select by certificates"
            )
        if selection.by == "certificates" and selection.targets is None and "margin" not in self.loss.rules:
            raise ValueError(
                f"selection.by certificates needs selection.targets: loss {self.loss.name} has no target rates"
            )

    def _check_evaluation(self) -> None:
        if self.data.has_heldout:
            return
        useless = ["every_steps", "max_pairs"]
        computed = self.needs_reference_figures and self.reference.file is None
        if not computed and self.loss.reads != "margin_rewards":
            useless.append("batch_size")  # no pass goes over the training pairs either
        for name in useless:
            if getattr(self.evaluation, name) is not None:
                raise ValueError(
                    f"evaluation.{name} has no effect without data.heldout or data.heldout_fraction; remove it"
                )

    def _check_balance(self) -> None:
        balance = self.adaptive.balance
        if "balance" not in self.loss.rules or balance.weights != "none":
            return
        if self.adaptive.mi_source == "policy":
            raise ValueError("adaptive.mi_source policy has no effect with balance.weights none; remove it")
        if balance.scale == 1.0 and not balance.scale_by_gradient_weight:
            plain = self.loss.name.replace("b_dpo", "dpo")
            raise ValueError(
                f"loss {self.loss.name} with adaptive.balance.weights none and scale 1 is {plain}; use that, or give a "
                "map of weights or a scale"
            )

    def _check_sampling(self) -> None:
        sampling = self.data.sampling
        if sampling is not None and sampling.strategy == "margin" and "margin" not in self.loss.rules:
            raise ValueError(
                f"data.sampling.strategy margin follows the violation rates of the margin rule, which loss "
                f"{self.loss.name} does not have; use cat_dpo or cat_b_dpo, or another strategy"
            )

        if sampling is not None and sampling.strategy == "margin" and self.rows.layout == "packed":
            raise ValueError(
                "data.sampling.strategy margin chooses each batch as it comes, but rows.layout packed fixes the shape "
                "of all of them in advance; set rows.layout: padded, or use another strategy"
            )

    def evaluation_batch_size(self) -> int:
        """Pairs at a time where nothing trains."""
        return self.evaluation.batch_size or 4 * self.micro_batch_size()

    def micro_batch_size(self) -> int:
        """Pairs that are on the devices at a time."""
        return self.train.batch_size // self.train.num_micro_batches

    def check_devices(self, num_devices: int) -> None:
        """Raise ConfigError where batches do not spread evenly over the mesh of that many devices."""
        try:
            data, fsdp, _ = self.mesh.shape(num_devices)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        parts = data * fsdp
        sizes = {"train.batch_size / train.num_micro_batches": self.micro_batch_size()}
        if self.evaluation.batch_size is not None:
            sizes["evaluation.batch_size"] = self.evaluation.batch_size
        for name, size in sizes.items():
            if size % parts:
                near = [n for n in (size // parts * parts, (size // parts + 1) * parts) if n]
                raise ConfigError(
                    f"{name} = {size} is not divisible by data * fsdp = {parts}; nearest: "
                    + " or ".join(str(n) for n in near)
                )


def _make_rule(section: str, config: Callable[..., Rule], **options: Any) -> Rule:
    try:
        return config(**options)
    except ValueError as error:  # begins with the name of the option
        raise ValueError(f"adaptive.{section}.{error}") from error


def _target_rates(target: float | dict[str, float], names: Sequence[str]) -> float | tuple[float, ...]:
    if not isinstance(target, dict):
        return target
    known = {*names, "default"}
    unknown = sorted(set(target) - known)
    if unknown:
        raise ValueError(
            f"adaptive.margin.target_rate names unknown categories {unknown}; known: {sorted(known)}"
        )
    missing = [name for name in names if name not in target]
    if missing and "default" not in target:
        raise ValueError(f"adaptive.margin.target_rate lacks {missing}; add them or a `default`")
    return tuple(target.get(name, target.get("default", 0.0)) for name in names)
