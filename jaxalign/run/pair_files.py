"""What a run leaves of single pairs: held-out pairs one by one, and the mutual information of those it trained on.

`jaxalign report` draws distributions and paired differences from these files; nothing else reads them.
"""

from pathlib import Path

import jax
import numpy as np

from jaxalign import adaptive
from jaxalign.evaluation.heldout_pairs import HeldoutPairs
from jaxalign.evaluation.mutual_information import mutual_information_summary
from jaxalign.files import replacing, write_json
from jaxalign.run.setup import Run
from jaxalign.training.state import TrainState

HELDOUT_PAIRS = "after_pairs.jsonl"
MUTUAL_INFORMATION = "mutual_information.json"


def write_heldout_pairs(path: Path, pairs: HeldoutPairs) -> None:
    """Write one line a pair, atomically."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in pairs.lines())


def write_mutual_information(run: Run, state: TrainState, path: Path) -> None:
    """Write MI under the reference of the pairs that the run visits, and their weights under this state.

    Nothing is written where the loss reads no MI of the reference.
    """
    train = run.data.train
    if not run.config.reads_reference_mi or train.mi is None:
        return
    objective = run.config.make_objective()
    value = objective.rule.value(jax.device_get(state.adaptive))["balance"]
    rows = np.isfinite(train.mi).all(axis=1)  # as the others are not visited
    chosen, rejected = train.mi[rows].T
    weights = adaptive.balance_weights(objective.rule_configs["balance"], value, chosen, rejected)
    summary = mutual_information_summary(
        train.mi[rows], np.stack(weights, axis=1), train.categories[rows], train.category_names
    )
    write_json(path, summary)
