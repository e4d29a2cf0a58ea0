"""Several adaptive rules carried as one. No rule of its own lives here."""

from typing import Any

from jaxalign.adaptive.rule import AdaptiveRule


def composite_rule(
    **rules: AdaptiveRule[Any, Any, Any],
) -> AdaptiveRule[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Carry several rules together: state, statistics and value are dicts by the given names.

    Each rule sees its own entries alone, so that the composite of rules is the rules side by side. Statistics of
    two parts of the data are added with `jax.tree.map(jnp.add, a, b)`, over devices with `jax.lax.psum`.

    Args:
      **rules: rules by name.

    Returns:
      `AdaptiveRule` over dicts. Its `update` raises ValueError where names of statistics or state are not
      exactly those of the rules.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxalign.adaptive import KlConfig, RewardShiftConfig, kl_rule, mean_stats, reward_shift_rule
      >>> rule = composite_rule(kl=kl_rule(KlConfig(ema_rate=1.0)),
      ...                       shift=reward_shift_rule(RewardShiftConfig(ema_rate=0.1)))
      >>> minus_one = mean_stats(jnp.array([-1.0]), jnp.ones(1))
      >>> state = rule.update({"kl": minus_one, "shift": minus_one}, rule.init())
      >>> {name: value.item() for name, value in rule.value(state).items()}
      {'kl': 0.0, 'shift': -1.0}
    """

    def init() -> dict[str, Any]:
        return {name: rule.init() for name, rule in rules.items()}

    def value(state: dict[str, Any]) -> dict[str, Any]:
        _check_names("state", state, rules)
        return {name: rule.value(state[name]) for name, rule in rules.items()}

    def update(stats: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        _check_names("stats", stats, rules)
        _check_names("state", state, rules)
        return {name: rule.update(stats[name], state[name]) for name, rule in rules.items()}

    return AdaptiveRule(init, value, update)


def _check_names(what: str, given: dict[str, Any], rules: dict[str, Any]) -> None:
    if given.keys() != rules.keys():
        raise ValueError(
            f"{what} has the names {sorted(given)}, expected those of the rules, {sorted(rules)}"
        )
