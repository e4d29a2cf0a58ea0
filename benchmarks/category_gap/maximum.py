"""What the maximum of the margins does: every setting against plain dpo at its beta and learning rate."""

import numpy as np
from choosing import scores_of_settings
from metrics import Interval, interval
from plan import Plan
from results import Results

METHODS = ("cat_dpo", "cat_dpo probe", "cat_dpo probe, one category")
BANDS = {
    "2 to 4 nats": (2.0, 4.0),
    "4 to 8 nats": (4.0, 8.0),
    "8 to 20 nats": (8.0, 20.0),
    "all": (2.0, 20.0),
}
FIGURES = {"worst": "worst category", "mean_safe": "mean safe rate", "helpful": "helpful"}


def differences_by_maximum(plan: Plan, results: Results) -> dict[str, tuple[int, dict[str, Interval]]]:
    """Number of settings, and figures minus those of dpo in points with intervals over settings, by method and band.

    On the screening seeds. Methods try what they share at the same points, so a setting of dpo has the same number.
    """
    numbers = {
        (row["name"], row["setting"]): row["numbers"] for row in results.rows if row["phase"] == "tune"
    }
    scores = {
        name: scores_of_settings(results.rows, name, plan.screening_seeds)
        for name in ("dpo", *METHODS)
        if name in plan.methods
    }
    found = {}
    for name in scores:
        for band, (low, high) in BANDS.items():
            pairs = [
                (one, scores["dpo"][setting])
                for setting, one in scores[name].items()
                if low <= numbers[name, setting].get("margin.maximum_nats", np.nan) < high
                and np.isfinite([one["worst"], scores["dpo"][setting]["worst"]]).all()
            ]
            if len(pairs) > 2:
                found[f"{name}, {band}"] = (
                    len(pairs),
                    {
                        figure: interval(100 * np.array([a[figure] - b[figure] for a, b in pairs]))
                        for figure in FIGURES
                    },
                )
    return found
