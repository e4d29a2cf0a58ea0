"""Settings of an evaluation of answers: which prompts, how they are answered, who judges. Nothing is read here."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from jaxalign.evaluation.judges.settings import JudgeConfig, RewardModelConfig
from jaxalign.settings import LaxPath, Settings

Rate = Annotated[float, Field(ge=0, lt=1)]


class PromptsConfig(Settings):
    """A file of prompts."""

    path: LaxPath = Field(description="jsonl, json, csv (also .gz) or parquet")
    layout: Literal["auto", "plain", "pku", "beavertails", "xstest"] = Field(
        default="auto", description="auto: told by the columns"
    )
    category_column: str | None = Field(default=None, description="of layout plain; null: the usual names")
    max_prompts: PositiveInt | None = Field(
        default=None, description="a fixed part, balanced over the categories; null: all"
    )


class AnswersConfig(Settings):
    """How the model answers."""

    num_samples: PositiveInt = Field(default=1, description="answers to each prompt")
    max_new_tokens: PositiveInt = Field(default=256, description="of one answer")
    temperature: float = Field(default=0.0, ge=0, description="0: the likeliest token")
    top_k: PositiveInt | None = Field(default=None, description="draw among so many likeliest tokens")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="among the fewest that reach this probability"
    )
    batch_size: PositiveInt = Field(default=16, description="answers at a time")
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="of the draws")


class SafetyConfig(Settings):
    """An evaluation of answers."""

    prompts: PromptsConfig
    answers: AnswersConfig = AnswersConfig()
    judge: JudgeConfig
    refusals: bool = Field(
        default=True, description="have the refusal rule tell over-refusal where the judge tells no refusals"
    )
    reward_model: RewardModelConfig | None = Field(default=None, description="scores helpfulness")
    targets: Rate | dict[str, Rate] | None = Field(
        default=None,
        description="violation rates that the certificate is about; null: those of the run's margin rule, if any",
    )
    calibration: LaxPath | None = Field(
        default=None, description="what `jaxalign evaluate --calibrate` wrote: the error of this judge"
    )
    num_resamples: int = Field(default=2000, ge=100, description="draws for the intervals")


class InterviewConfig(Settings):
    """Questions to the policy while it trains."""

    every_steps: PositiveInt = Field(default=100, description="updates between two times")
    prompts: PromptsConfig
    answers: AnswersConfig = AnswersConfig(max_new_tokens=128)
    judge: JudgeConfig


class ProbeConfig(InterviewConfig):
    """Answers of the policy while it trains, which the margins follow."""

    max_seconds: PositiveFloat | None = Field(
        default=None,
        description="of all probes since the start or a resumption, after which no more are made, so that what is "
        "trained depends on the clock; null: no limit",
    )


class SelectionConfig(InterviewConfig):
    """Which state of a run is kept as the best one, and when training stops early, by the policy's judged answers."""

    by: Literal["worst_category", "certificates"] = Field(
        default="worst_category",
        description="best is the state whose worst category is safest, by a lower bound; certificates: those of all "
        "categories come first, and training stops when they are met",
    )
    patience: PositiveInt | None = Field(
        default=None,
        description="stop after so many times without a better state; null: train to the last step",
    )
    min_prompts: PositiveInt = Field(default=10, description="of a category; fewer are refused")
    max_over_refusal: float | None = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of benign prompts refused up to which a state can be the best; null: any",
    )
    targets: Rate | dict[str, Rate] | None = Field(
        default=None,
        description="violation rates that the certificates are about; null: those of the margin rule",
    )
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="of the bounds, over all categories together"
    )
