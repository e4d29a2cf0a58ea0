"""Splitting, the safety transform, mixing, and the report: every row is accounted for."""

from collections import Counter
from collections.abc import Callable

import pytest

from jaxalign.data.ordering import permutation
from jaxalign.data.schema import DataError, Pair, prompt_key
from jaxalign.data.settings import DataConfig
from jaxalign.data.sources import load_pairs, mix, safety_transform

Write = Callable[..., str]


def plain(path: str, **options: object) -> dict:
    return {"format": "plain", "path": path, **options}


def rows(num: int, prompt: str = "ask") -> list[dict]:
    return [{"prompt": f"{prompt} {i // 2}", "chosen": f"no {i}", "rejected": f"yes {i}"} for i in range(num)]


def prompts(pairs: list[Pair]) -> set[str]:
    return {prompt_key(pair.prompt) for pair in pairs}


def test_heldout_fraction_splits_by_prompt_and_loses_nothing(write_rows: Write) -> None:
    config = DataConfig(train=[plain(write_rows(rows(400)))], heldout_fraction=0.25)
    train, train_report = load_pairs(config, "train")
    heldout, heldout_report = load_pairs(config, "heldout")
    assert len(train) + len(heldout) == 400
    assert not prompts(train) & prompts(heldout)
    assert 30 <= len(prompts(heldout)) <= 70  # 50 expected of 200
    assert train_report.sources[0].num_other_split == len(heldout) == heldout_report.num_pairs


def test_heldout_prompts_do_not_depend_on_seed_order_or_spelling(write_rows: Write) -> None:
    forward = DataConfig(train=[plain(write_rows(rows(100)))], heldout_fraction=0.3)
    shouted = [row | {"prompt": "  " + row["prompt"].upper()} for row in reversed(rows(100))]
    halves = [plain(write_rows(shouted[i::2], f"{i}.jsonl")) | {"weight": 1.0 + i} for i in (0, 1)]
    other = DataConfig(train=halves, heldout_fraction=0.3, seed=7)
    assert prompts(load_pairs(forward, "heldout")[0]) == prompts(load_pairs(other, "heldout")[0])


def test_conversations_with_one_opening_stay_on_one_side(write_rows: Write) -> None:
    data = []
    for i in range(60):
        opening = f"\n\nHuman: ask {i}\n\nAssistant:"
        longer = opening + f" Well.\n\nHuman: more {i}\n\nAssistant:"
        data += [{"chosen": start + " No.", "rejected": start + " Yes."} for start in (opening, longer)]
    config = DataConfig(train=[{"format": "hh", "path": write_rows(data)}], heldout_fraction=0.3)
    sides = [
        {pair.prompt[0].content for pair in load_pairs(config, split)[0]} for split in ("train", "heldout")
    ]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_heldout_sources_are_read_whole(write_rows: Write) -> None:
    train, heldout = write_rows(rows(6)), write_rows(rows(4, "other"), "b.jsonl")
    config = DataConfig(train=[plain(train)], heldout=[plain(heldout)])
    assert [len(load_pairs(config, split)[0]) for split in ("train", "heldout")] == [6, 4]


def test_asking_for_heldout_without_any_is_an_error(write_rows: Write) -> None:
    with pytest.raises(DataError, match=r"no held-out data: .*give data.heldout or data.heldout_fraction"):
        load_pairs(DataConfig(train=[plain(write_rows(rows(2)))]), "heldout")


@pytest.mark.parametrize(
    ("unsafe", "texts"),
    [((0, 0), "ab"), ((0, 1), "ab"), ((1, 0), "ba"), ((1, 1), None)],
    ids=["both safe: kept", "chosen safe: kept", "chosen unsafe: swapped", "both unsafe: dropped"],
)
def test_safety_transform(unsafe: tuple[int, int], texts: str | None) -> None:
    pair = Pair((), "a", "b", (), bool(unsafe[0]), bool(unsafe[1]), "x:1")
    result = safety_transform(pair)
    if texts is None:
        assert result is None
        return
    assert result is not None
    assert result.chosen + result.rejected == texts
    assert (result.chosen_unsafe, result.rejected_unsafe) == (False, any(unsafe))


def test_view_safedpo_is_view_better_with_the_transform(write_rows: Write, pku_row: Callable) -> None:
    unsafe = [(a, b) for a in (False, True) for b in (False, True)]
    path = write_rows([pku_row(unsafe=u, better=better) for u in unsafe for better in (0, 1)])
    view = DataConfig(train=[{"format": "pku", "path": path, "view": "safedpo"}])
    option = DataConfig(train=[{"format": "pku", "path": path, "view": "better"}], safety_transform=True)
    assert load_pairs(view, "train") == load_pairs(option, "train")


def test_report_accounts_for_every_row(write_rows: Write, pku_row: Callable) -> None:
    data = [
        pku_row(),
        pku_row(better=1),
        pku_row(unsafe=(True, True)),
        pku_row(unsafe=(False, False)),
        pku_row(prompt=None),
        pku_row(response_1="answer 0"),
    ]
    source = {"format": "pku", "path": write_rows(data), "view": "safedpo"}
    pairs, report = load_pairs(DataConfig(train=[source], on_error="skip"), "train")
    (counts,) = report.sources
    assert counts.num_rows == counts.num_kept + counts.num_dropped + sum(counts.errors.values())
    assert (len(pairs), counts.num_kept, counts.num_swapped, counts.num_dropped) == (3, 3, 1, 1)
    drugs = report.by_category["Drugs"]
    assert (drugs.pairs, drugs.chosen_unsafe, drugs.both_unsafe) == (3, 2, 1)
    assert (drugs.swapped, drugs.dropped, drugs.identical) == (1, 1, 1)
    assert report.by_category["(none)"].pairs == 1
    assert "1 swapped, 1 dropped (both responses unsafe)" in report.lines()[0]


def test_safe_better_counts_what_it_leaves_out(write_rows: Write, pku_row: Callable) -> None:
    source = {"format": "pku", "path": write_rows([pku_row(), pku_row(better=1)]), "view": "safe_better"}
    report = load_pairs(DataConfig(train=[source]), "train")[1]
    assert report.sources[0].skipped == {"chosen response is unsafe (view: safe_better)": 1}


def test_mix_without_weights_takes_every_row_once() -> None:
    assert mix([3, 2], [None, None], seed=0) == [[0, 1, 2], [0, 1]]


@pytest.mark.parametrize("weights", [(0.5, 0.5), (3.0, 1.0), (0.1, 0.9)])
def test_mix_keeps_proportions_and_loses_no_row(weights: tuple[float, float]) -> None:
    sizes = (70, 30)
    order = mix(sizes, weights, seed=3)
    counts = [Counter(rows) for rows in order]
    assert [len(count) for count in counts] == list(sizes)
    assert all(max(count.values()) - min(count.values()) <= 1 for count in counts)
    assert min(map(len, order)) in sizes or max(map(len, order)) in sizes  # one source enters just once
    share = len(order[0]) / sum(map(len, order))
    assert share == pytest.approx(weights[0] / sum(weights), abs=0.005)


def test_mix_draws_repeats_by_the_seed() -> None:
    orders = [mix([70, 30], [0.5, 0.5], seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_mixed_sources_are_reported_with_their_share_of_an_epoch(write_rows: Write) -> None:
    paths = write_rows(rows(10)), write_rows(rows(2, "other"), "b.jsonl")
    config = DataConfig(train=[plain(path, weight=0.5) for path in paths])
    pairs, report = load_pairs(config, "train")
    assert len(pairs) == report.num_pairs == 20
    assert [(source.num_kept, source.num_epoch) for source in report.sources] == [(10, 10), (2, 10)]


def test_permutation_is_one_and_follows_its_key() -> None:
    assert sorted(permutation(100, 1, 2).tolist()) == list(range(100))
    assert permutation(100, 1, 2).tolist() == permutation(100, 1, 2).tolist()
    assert permutation(100, 1, 2).tolist() != permutation(100, 2, 1).tolist()
    assert permutation(8, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]  # on every machine, for ever
