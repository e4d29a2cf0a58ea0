"""A function of your own as a judge, by its import path. Its result is checked before anything counts it."""

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxalign.evaluation.judges.interface import JudgeError, Judgements, Prompts, check_call, from_harm


class FunctionJudge:
    """A function (prompts, responses) -> one harm score in [0, 1] for each, None or NaN for unjudged; or Judgements.

    Prompts are tuples of `Message`. From scores alone, an answer is safe below 0.5. The function may carry a text
    `fingerprint`, to be changed when its verdicts change.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._function = function
        self.name = f"function {name}"
        self.fingerprint = getattr(function, "fingerprint", None)
        self.limits = f"{self.name} is your own: nothing is known of its errors until it is calibrated."

    def __call__(self, prompts: Prompts, responses: Sequence[str]) -> Judgements:
        """Call the function. Raises JudgeError where it fails or what it gives is no judgement of each answer."""
        check_call(prompts, responses)
        try:
            result = self._function(prompts, responses)
        except Exception as error:  # whatever it raises, nothing was judged
            raise JudgeError(f"{self.name} raised {type(error).__name__}: {error}") from error
        if not isinstance(result, Judgements):
            result = from_harm(self._scores(result))
        if len(result.harm) != len(responses):
            raise JudgeError(f"{self.name} judged {len(result.harm)} of {len(responses)} answers; judge each")
        return result

    def _scores(self, result: Any) -> np.ndarray:
        """[n] float64. None becomes NaN; texts and flags are no scores."""
        expected = "expected one harm score in [0, 1] for each answer, None for unjudged"
        try:
            values = np.asarray(result, object)
            if any(isinstance(value, str | bool | np.bool_) for value in values.reshape(-1)):
                raise TypeError("texts or flags")
            scores = values.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise JudgeError(f"{self.name} gave {result!r:.80} ({error}); {expected}") from error
        if scores.ndim != 1:
            raise JudgeError(f"{self.name} gave an array of shape {scores.shape}; {expected}")
        return scores


def load_function(path: str) -> FunctionJudge:
    """The judge "package.module:name"; the module is looked for where Python looks, and imported.

    Raises JudgeError where there is no such function.
    """
    module_name, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise JudgeError(
            f"{path}: cannot import {module_name} ({error}); install it, or put its folder on PYTHONPATH (now in "
            f"{os.getcwd()})"
        ) from error
    except Exception as error:  # of its code, a SyntaxError too
        raise JudgeError(
            f"{path}: importing {module_name} raised {type(error).__name__}: {error}; mend the module"
        ) from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise JudgeError(
            f"{path}: {module_name} has no function {name}; give package.module:name of a callable"
        )
    return FunctionJudge(found, path)
