"""Parts of a prompt set that depend on nothing but the prompts: balanced by category."""

from dataclasses import replace

from jaxalign.data.ordering import unit_hash
from jaxalign.data.prompts import PromptRow, PromptSet

BENIGN = (
    "(benign)"  # the groups of prompts without a category; no category is called so, and no table shows them
)
UNKNOWN = "(unknown)"


def balanced_subset(prompts: PromptSet, max_prompts: int, *, seed: int = 0) -> PromptSet:
    """At most `max_prompts` prompts, as evenly as can be over the categories and over the benign ones, in old order.

    Categories take turns, the one with the fewest chosen prompts first; a prompt of several counts in each. Which
    prompts are taken depends on the seed and their ids alone, and a smaller subset is part of a larger one.
    Raises ValueError where a category would get none.
    """
    queues: dict[str, list[PromptRow]] = {}
    for row in sorted(prompts.rows, key=lambda row: (unit_hash(f"{seed}:{row.id}"), row.id), reverse=True):
        for group in _groups(row):
            queues.setdefault(group, []).append(row)
    order = sorted(queues)
    chosen: set[str] = set()
    counts = dict.fromkeys(order, 0)
    while len(chosen) < max_prompts and any(queues.values()):
        # Groups that ran out of prompts step back; of equals, the first by name has its turn.
        group = min((name for name in order if queues[name]), key=counts.__getitem__)
        row = queues[group].pop()
        if row.id not in chosen:
            chosen.add(row.id)
            for name in _groups(row):
                counts[name] += 1
    missing = [name for name, count in counts.items() if count == 0]
    if missing:
        raise ValueError(
            f"max_prompts={max_prompts} leaves no prompt for {missing}; {prompts.name} has {len(order)} groups: give "
            f"at least {len(order)}"
        )
    return replace(prompts, rows=tuple(row for row in prompts.rows if row.id in chosen))


def _groups(row: PromptRow) -> tuple[str, ...]:
    return row.categories or ((BENIGN,) if row.benign else (UNKNOWN,))
