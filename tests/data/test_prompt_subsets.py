"""Subsets of prompts: balanced, deterministic, and nested."""

import dataclasses
from collections import Counter

import pytest

from jaxalign.data.prompt_subsets import balanced_subset
from jaxalign.data.prompts import PromptRow, PromptSet
from jaxalign.data.schema import Message


def prompts_of(*labels: str) -> PromptSet:
    rows = tuple(
        PromptRow(
            f"id{i}",
            (Message("user", f"Ask {i}?"),),
            tuple(name.split()) if name != "benign" else (),
            name == "benign",
        )
        for i, name in enumerate(labels)
    )
    return PromptSet("set", rows, tuple(sorted({name for row in rows for name in row.categories})))


LONG_TAIL = prompts_of(*["a"] * 50, *["b"] * 10, *["c"] * 3, *["benign"] * 20)


def counts(prompts: PromptSet) -> Counter:
    return Counter(row.categories or row.benign for row in prompts.rows)


@pytest.mark.parametrize(
    ("max_prompts", "expected"),
    [(4, (1, 1, 1, 1)), (12, (3, 3, 3, 3)), (30, (9, 9, 3, 9)), (33, (10, 10, 3, 10)), (83, (50, 10, 3, 20))],
)
def test_groups_get_as_many_prompts_as_they_have_or_as_the_others(max_prompts, expected):
    found = counts(balanced_subset(LONG_TAIL, max_prompts))
    assert tuple(found[key] for key in (("a",), ("b",), ("c",), True)) == expected


def test_smaller_subset_is_part_of_a_larger_one_and_keeps_its_order():
    sizes = [[row.id for row in balanced_subset(LONG_TAIL, n).rows] for n in (8, 20, 60)]
    assert set(sizes[0]) < set(sizes[1]) < set(sizes[2])
    all_ids = [row.id for row in LONG_TAIL.rows]
    assert sizes[2] == [id_ for id_ in all_ids if id_ in sizes[2]]


def test_order_of_the_prompts_changes_no_choice_and_the_seed_does():
    turned = dataclasses.replace(LONG_TAIL, rows=LONG_TAIL.rows[::-1])
    chosen = {row.id for row in balanced_subset(LONG_TAIL, 12).rows}
    assert {row.id for row in balanced_subset(turned, 12).rows} == chosen
    assert {row.id for row in balanced_subset(LONG_TAIL, 12, seed=1).rows} != chosen


def test_prompt_of_several_categories_counts_in_each():
    found = balanced_subset(prompts_of("a b", "a b", "a b", "c", "c", "c"), 4)
    assert counts(found) == {("a", "b"): 2, ("c",): 2}


def test_subset_of_more_than_all_is_all():
    assert balanced_subset(LONG_TAIL, 1000) == LONG_TAIL


def test_subset_without_a_prompt_of_some_category_is_refused():
    with pytest.raises(
        ValueError, match=r"max_prompts=2 leaves no prompt for \['b', 'c'\]; .* give at least 4"
    ):
        balanced_subset(LONG_TAIL, 2)
