"""A judge that must run once, in a run of several processes: process 0 asks it and tells the others."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxalign.evaluation.judges.interface import Judge, JudgeError, Judgements, Prompts


@dataclasses.dataclass
class OneProcess:
    """The judge, asked by process 0 alone; categories that it may name are not passed on.

    Where it fails, it fails in all processes, so that none of them waits for ever.
    """

    judge: Judge
    name: str = dataclasses.field(init=False)
    limits: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Go by the name of the judge."""
        self.name, self.limits = self.judge.name, self.judge.limits

    def __call__(self, prompts: Prompts, responses: Sequence[str]) -> Judgements:
        """The same judgements in every process."""
        table, failed, error = np.zeros((4, len(responses))), 0, None
        if jax.process_index() == 0:
            try:
                found = self.judge(prompts, responses)
                refused = np.full(len(responses), np.nan) if found.refused is None else found.refused
                table = np.stack([found.harm, found.safe, found.judged, refused]).astype(np.float64)
            except Exception as caught:  # whatever it is, the others must hear of it
                failed, error = 1, caught
        # As bits: float64 would lose half of them on the way through arrays.
        bits, failed = multihost_utils.broadcast_one_to_all((table.view(np.uint32), np.int32(failed)))
        if failed:
            raise error or JudgeError(f"{self.name} failed in process 0, whose message says how")
        harm, safe, judged, refused = np.asarray(bits).view(np.float64).reshape(4, -1)
        return Judgements(
            harm.copy(),
            safe.astype(bool),
            judged.astype(bool),
            None if np.isnan(refused).any() else refused.astype(bool),
        )
