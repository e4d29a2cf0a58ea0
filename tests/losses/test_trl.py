"""Every loss of TRL 1.16, run by TRL itself, equals the form of ours that trl_cases.py puts beside it."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.losses import trl_losses
from tests.losses.trl_cases import COUNTERPARTS, deviations, extreme_pairs, outcomes, random_pairs

pytestmark = trl_losses.NEEDED
PAGE = Path(__file__).resolve().parents[2] / "docs" / "trl.md"


@pytest.mark.parametrize("extreme", [False, True], ids=["random", "extreme"])
@pytest.mark.parametrize("name", COUNTERPARTS)
def test_value_and_gradient_equal_those_of_trl(name, extreme):
    value, gradient = deviations(name, extreme=extreme)
    assert value < COUNTERPARTS[name].tolerance
    assert gradient < COUNTERPARTS[name].tolerance


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_ours_is_finite_at_extremes_and_trl_is_but_for_alphapo(name):
    theirs, ours = outcomes(name, extreme=True)
    assert np.isfinite(ours.value).all()
    assert np.isfinite(ours.gradient).all()
    # A response of one token and -1001 nats has a probability of 0 in float64, whose power is infinite.
    assert (~np.isfinite(theirs.value)).sum() == (6 if name == "CPO alphapo" else 0)


@pytest.mark.parametrize(
    "name", [name for name in COUNTERPARTS if name.startswith("DPO") and name != "DPO sft"]
)
def test_mean_over_a_batch_is_the_mean_of_our_losses(name):
    counterpart, pairs = COUNTERPARTS[name], random_pairs(num_pairs=5, seed=1)
    theirs = trl_losses.dpo(pairs, name.removeprefix("DPO "), **{"beta": 0.1} | counterpart.scalars)
    np.testing.assert_allclose(counterpart.ours(pairs).value.mean(), theirs.value, rtol=1e-13)


def test_every_loss_type_of_trl_is_in_the_table():
    from trl import KTOConfig

    choices = KTOConfig.__dataclass_fields__["loss_type"].metadata["choices"]
    assert {f"KTO {loss_type}" for loss_type in choices} <= set(COUNTERPARTS)
    for trainer, run in (("DPO", trl_losses.dpo), ("CPO", trl_losses.cpo)):
        with pytest.raises(ValueError, match="Unknown loss type: none of them") as error:
            run(random_pairs(num_pairs=1), "none of them", beta=0.1)
        known = re.findall(r"'(\w+)'", str(error.value))
        assert len(known) >= 4
        assert {f"{trainer} {loss_type}" for loss_type in known} <= set(COUNTERPARTS)


def test_extremes_hold_log_ratios_of_1000_nats_both_ways_and_lengths_of_1_and_1000():
    pairs = extreme_pairs()
    for role in ("chosen", "rejected"):
        ratios = pairs[f"policy_{role}_logps"] - pairs[f"reference_{role}_logps"]
        assert set(ratios) == {-1000.0, 0.0, 1000.0}
        assert set(pairs[f"{role}_length"]) == {1, 1000}


def test_page_names_the_form_of_ours_for_every_loss_of_trl():
    told = re.findall(r"^\| ([^|]+?) \| \[`(\w+)`\]", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    parts = {"chosen_likelihood": "sft_loss", "odds_ratio": "orpo_loss"}
    names = {name: counterpart.loss.__name__ for name, counterpart in COUNTERPARTS.items()}
    assert dict(told) == {name: parts.get(loss, loss) for name, loss in names.items()}
