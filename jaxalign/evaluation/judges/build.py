"""A judge from its settings."""

from jax.sharding import Mesh

from jaxalign.evaluation.judges.endpoint import EndpointJudge
from jaxalign.evaluation.judges.function import load_function
from jaxalign.evaluation.judges.guard import load_guard
from jaxalign.evaluation.judges.interface import Judge
from jaxalign.evaluation.judges.refusal import RefusalJudge
from jaxalign.evaluation.judges.score_model import load_cost_judge
from jaxalign.evaluation.judges.settings import (
    EndpointConfig,
    FunctionConfig,
    GuardConfig,
    JudgeConfig,
    ScoreModelConfig,
)


def make_judge(config: JudgeConfig, mesh: Mesh | None = None) -> Judge:
    """The judge that the settings describe; a model is spread over `mesh`, or on one device without one.

    Raises JudgeError, or the error of the checkpoint, where it cannot be used.
    """
    match config:
        case ScoreModelConfig():
            return load_cost_judge(config, mesh)
        case GuardConfig():
            return load_guard(config, mesh)
        case EndpointConfig():
            return EndpointJudge(config)
        case FunctionConfig():
            return load_function(config.function)
    return RefusalJudge()
