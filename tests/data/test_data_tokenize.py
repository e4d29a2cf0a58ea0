"""Laws of tokenisation: the prompt once, no BOS on responses, EOS trained on, what is cut and what is refused."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.schema import DataError, Message, Pair
from jaxalign.data.settings import DataConfig
from jaxalign.data.tokenize import tokenize_pairs

MakePairs = Callable[..., list[Pair]]


def config(**options: Any) -> DataConfig:
    return DataConfig(train=[{"format": "plain", "path": "unused.jsonl"}], **options)


def test_chat_prompt_is_the_template_and_the_response_follows_it(
    tiny_tokenizer: Any, make_pairs: MakePairs
) -> None:
    dataset = tokenize_pairs(make_pairs(2), tiny_tokenizer, config())
    assert tiny_tokenizer.decode(dataset.prompt_ids[1]) == "<|bos|>user: ask 1\n<|bos|>assistant: "
    assert tiny_tokenizer.decode(dataset.chosen_ids[1]) == "no 1<|eos|>"
    assert tiny_tokenizer.decode(dataset.rejected_ids[1]) == "yes, take 1<|eos|>"


def test_prompt_and_response_equal_the_template_of_the_whole_conversation(
    tiny_tokenizer: Any, make_pairs: MakePairs
) -> None:
    (pair,) = make_pairs(1)
    dataset = tokenize_pairs([pair], tiny_tokenizer, config())
    turns = [{"role": "user", "content": "ask 0"}, {"role": "assistant", "content": "no 0"}]
    whole = tiny_tokenizer.apply_chat_template(turns, return_dict=False)[:-1]  # without the line break
    assert [*dataset.prompt_ids[0], *dataset.chosen_ids[0][:-1]] == whole


def test_eos_ends_responses_even_where_it_is_the_pad_token(
    tiny_tokenizer: Any, make_pairs: MakePairs
) -> None:
    assert tiny_tokenizer.pad_token_id == tiny_tokenizer.eos_token_id
    dataset = tokenize_pairs(make_pairs(3), tiny_tokenizer, config())
    assert dataset.pad_id == tiny_tokenizer.eos_token_id
    for ids in dataset.chosen_ids + dataset.rejected_ids:
        assert ids[-1] == tiny_tokenizer.eos_token_id
        assert tiny_tokenizer.eos_token_id not in ids[:-1]


def test_eos_that_the_text_brings_is_not_doubled(tiny_tokenizer: Any, make_pairs: MakePairs) -> None:
    dataset = tokenize_pairs(make_pairs(1, chosen="no<|eos|>"), tiny_tokenizer, config())
    assert tiny_tokenizer.decode(dataset.chosen_ids[0]) == "no<|eos|>"


def test_responses_never_begin_with_bos(bos_tokenizer: Any, make_pairs: MakePairs) -> None:
    dataset = tokenize_pairs(make_pairs(2), bos_tokenizer, config(prompt_format="raw"))
    assert bos_tokenizer.decode(dataset.prompt_ids[0]) == "<|bos|>ask 0"
    assert bos_tokenizer.decode(dataset.chosen_ids[0]) == "no 0<|eos|>"


def test_raw_prompt_is_the_text_alone_where_the_tokenizer_adds_nothing(
    tiny_tokenizer: Any, make_pairs: MakePairs
) -> None:
    dataset = tokenize_pairs(make_pairs(1), tiny_tokenizer, config(prompt_format="raw"))
    assert tiny_tokenizer.decode(dataset.prompt_ids[0]) == "ask 0"


def test_empty_prompt_is_the_template_around_nothing_or_bos(
    tiny_tokenizer: Any, bos_tokenizer: Any, make_pairs: MakePairs
) -> None:
    chat = tokenize_pairs(make_pairs(1), tiny_tokenizer, config())
    assert tiny_tokenizer.decode(chat.empty_prompt_ids) == "<|bos|>user: \n<|bos|>assistant: "
    for tokenizer in (tiny_tokenizer, bos_tokenizer):
        raw = tokenize_pairs(make_pairs(1), tokenizer, config(prompt_format="raw"))
        assert raw.empty_prompt_ids.tolist() == [tokenizer.bos_token_id]


def test_system_prompt_enters_where_there_is_none(tiny_tokenizer: Any, make_pairs: MakePairs) -> None:
    own = (Message("system", "Mine."), Message("user", "ask"))
    pairs = make_pairs(1) + make_pairs(1, prompt=own)
    dataset = tokenize_pairs(pairs, tiny_tokenizer, config(system_prompt="Yours."))
    starts = [tiny_tokenizer.decode(ids).split("\n")[0] for ids in dataset.prompt_ids]
    assert starts == ["<|bos|>system: Yours.", "<|bos|>system: Mine."]
    assert tiny_tokenizer.decode(dataset.empty_prompt_ids).startswith("<|bos|>system: Yours.")


def test_overlong_prompt_keeps_its_end_and_response_its_start(
    tiny_tokenizer: Any, make_pairs: MakePairs
) -> None:
    pairs = make_pairs(3)
    dataset = tokenize_pairs(pairs, tiny_tokenizer, config(max_prompt_length=12, max_response_length=7))
    assert tiny_tokenizer.decode(dataset.prompt_ids[0]) == "<|bos|>assistant: "
    assert tiny_tokenizer.decode(dataset.chosen_ids[0]) == "no 0<|eos|>"  # 5 tokens: whole
    assert tiny_tokenizer.decode(dataset.rejected_ids[0]) == "yes, ta"  # cut: it has not ended
    assert dataset.num_cut.tolist() == [[13, 0, 5]] * 3


@pytest.mark.parametrize(("limit", "text", "lost"), [(5, "no 0<|eos|>", 0), (4, "no 0", 1), (3, "no ", 2)])
def test_cut_response_loses_its_eos(
    tiny_tokenizer: Any, make_pairs: MakePairs, limit: int, text: str, lost: int
) -> None:
    dataset = tokenize_pairs(make_pairs(1), tiny_tokenizer, config(max_response_length=limit))
    assert tiny_tokenizer.decode(dataset.chosen_ids[0]) == text
    assert dataset.num_cut[0, 1] == lost


def test_truncation_is_counted_by_category(tiny_tokenizer: Any, make_pairs: MakePairs) -> None:
    pairs = make_pairs(6)  # Drugs, Violence, none, twice
    pairs[1] = dataclasses.replace(pairs[1], chosen="a" * 30)
    pairs[2] = dataclasses.replace(pairs[2], prompt=(Message("user", "b" * 60),))
    report = tokenize_pairs(
        pairs, tiny_tokenizer, config(max_prompt_length=40, max_response_length=20)
    ).truncation()
    assert (report.num_pairs, report.total) == (6, (1, 1, 0))
    assert report.by_category == {"Violence": (0, 1, 0), "(none)": (1, 0, 0)}
    assert report.lines()[0].startswith("cut in all 6 pairs: 1 prompts (start removed), 1 chosen")


def test_nothing_is_reported_where_nothing_was_cut(tiny_tokenizer: Any, make_pairs: MakePairs) -> None:
    assert tokenize_pairs(make_pairs(2), tiny_tokenizer, config()).truncation().lines() == []


def test_labels_follow_the_pairs(tiny_tokenizer: Any, make_pairs: MakePairs) -> None:
    pairs = make_pairs(3) + make_pairs(1, categories=("b", "a"), chosen_unsafe=True)
    pairs = [
        dataclasses.replace(p, categories=tuple(c.replace("Drugs", "a") for c in p.categories)) for p in pairs
    ]
    dataset = tokenize_pairs(pairs, tiny_tokenizer, config(categories=["a", "b", "Violence"]))
    np.testing.assert_array_equal(dataset.categories, [[1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(dataset.rejected_unsafe, [1, 1, 0, 1])
    np.testing.assert_array_equal(dataset.chosen_unsafe, [0, 0, 0, 1])
    assert dataset.categories.dtype == dataset.chosen_unsafe.dtype == np.float32
    assert dataset.prompt_ids[0].dtype == np.int32
    assert dataset.origins == ("test:1", "test:2", "test:3", "test:1")


def test_chat_without_template_is_an_error_with_the_remedy(bos_tokenizer: Any, make_pairs: MakePairs) -> None:
    with pytest.raises(DataError, match=r"no chat template.*set data.prompt_format: raw"):
        tokenize_pairs(make_pairs(1), bos_tokenizer, config())


def test_messages_in_raw_format_are_an_error(tiny_tokenizer: Any, make_pairs: MakePairs) -> None:
    pairs = make_pairs(1, prompt=(Message("system", "Be kind."), Message("user", "ask")))
    with pytest.raises(DataError, match=r"test:1: .*no raw prompt: got messages of \['system', 'user'\]"):
        tokenize_pairs(pairs, tiny_tokenizer, config(prompt_format="raw"))


def test_prompt_that_the_template_refuses_is_an_error(tiny_tokenizer: Any, make_pairs: MakePairs) -> None:
    pairs = make_pairs(1, prompt=(Message("user", "a"), Message("system", "b"), Message("user", "c")))
    with pytest.raises(
        DataError, match=r"test:1: .*refused by the chat template: got system must come first"
    ):
        tokenize_pairs(pairs, tiny_tokenizer, config())


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_template_with_an_error_is_not_blamed_on_the_roles(
    tiny_tokenizer: Any, make_pairs: MakePairs, on_error: str
) -> None:
    broken = copy.deepcopy(tiny_tokenizer)
    broken.chat_template = "{% for m in messages %}\n{{ m.content }"
    with pytest.raises(
        DataError, match=r"tokenizer does not fit: got a chat template with an error in line 2"
    ) as e:
        tokenize_pairs(make_pairs(1), broken, config(on_error=on_error))
    assert str(e.value).endswith("correct the chat template")


def test_tokenizer_without_eos_is_an_error(make_pairs: MakePairs) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    with pytest.raises(DataError, match=r"no end-of-sequence token.*set the tokenizer's eos_token"):
        tokenize_pairs(make_pairs(1), bare, config(prompt_format="raw"))


BAD_PAIRS = {
    "empty response": (
        {"chosen": "<|eos|>"},
        {},
        "test:1: field 'chosen': empty response: got no token of it",
    ),
    "identical once cut": (
        {"chosen": "the same start, no", "rejected": "the same start, yes"},
        {"max_response_length": 10},
        "identical once cut: got 10 equal tokens.*raise data.max_response_length",
    ),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_pair_that_says_nothing_is_refused_or_counted(
    tiny_tokenizer: Any, make_pairs: MakePairs, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    fields, options, message = BAD_PAIRS[case]
    pairs = make_pairs(1, **fields) + make_pairs(2)
    with pytest.raises(DataError, match=message):
        tokenize_pairs(pairs, tiny_tokenizer, config(**options))
    dataset = tokenize_pairs(pairs, tiny_tokenizer, config(on_error="skip", **options))
    assert (len(dataset), len(dataset.skipped), dataset.skipped_rows) == (2, 1, (0,))
    assert f"1 pairs skipped while tokenising ({case})" in caplog.text


def test_no_pair_after_tokenising_is_an_error(tiny_tokenizer: Any, make_pairs: MakePairs) -> None:
    with pytest.raises(DataError, match="no pairs left: got no pair after tokenising"):
        tokenize_pairs(make_pairs(2, chosen="<|eos|>"), tiny_tokenizer, config(on_error="skip"))


@pytest.fixture
def dataset(tiny_tokenizer: Any, make_pairs: MakePairs) -> TokenizedDataset:
    return tokenize_pairs(make_pairs(4), tiny_tokenizer, config())


def test_fingerprint_changes_with_every_ingredient(dataset: TokenizedDataset) -> None:
    swapped = (dataset.prompt_ids[1], dataset.prompt_ids[0], *dataset.prompt_ids[2:])
    changes: list[dict[str, Any]] = [
        {"prompt_ids": swapped},
        {"chosen_ids": dataset.rejected_ids},
        {"rejected_ids": dataset.chosen_ids},
        {"categories": 1 - dataset.categories},
        {"chosen_unsafe": 1 - dataset.chosen_unsafe},
        {"rejected_unsafe": 1 - dataset.rejected_unsafe},
        {"category_names": tuple(reversed(dataset.category_names))},
        {"pad_id": dataset.pad_id + 1},
        {"empty_prompt_ids": dataset.empty_prompt_ids[1:]},
    ]
    prints = {dataclasses.replace(dataset, **change).fingerprint() for change in changes}
    assert len(prints | {dataset.fingerprint()}) == len(changes) + 1


def test_fingerprint_sees_where_a_response_ends(dataset: TokenizedDataset) -> None:
    first, second, *rest = dataset.chosen_ids
    moved = (first[:-1], np.concatenate([first[-1:], second]), *rest)  # the same tokens in a row
    assert dataclasses.replace(dataset, chosen_ids=moved).fingerprint() != dataset.fingerprint()


def test_fingerprint_ignores_file_names_and_reference_values(dataset: TokenizedDataset) -> None:
    values = np.ones((4, 2), np.float32)
    other = dataclasses.replace(dataset, origins=("moved",) * 4, reference_logps=values, mi=values)
    assert other.fingerprint() == dataset.fingerprint()
    assert len(dataset.fingerprint()) == 64


def test_lengths_count_tokens(dataset: TokenizedDataset) -> None:
    lengths = [
        [len(ids) for ids in part] for part in (dataset.prompt_ids, dataset.chosen_ids, dataset.rejected_ids)
    ]
    assert dataset.lengths.T.tolist() == lengths
    assert dataset.row_lengths.tolist() == [p + max(c, r) for p, c, r in zip(*lengths, strict=True)]


def test_select_takes_everything_that_belongs_to_the_pairs(dataset: TokenizedDataset) -> None:
    values = np.arange(8.0).reshape(4, 2)
    part = dataclasses.replace(dataset, reference_logps=values, mi=values + 1).select(np.array([2, 0]))
    assert part.origins == ("test:3", "test:1")
    assert [ids.tolist() for ids in part.chosen_ids] == [dataset.chosen_ids[i].tolist() for i in (2, 0)]
    assert part.mi is not None
    assert part.mi.tolist() == [[5, 6], [1, 2]]
    assert len(part.num_cut) == len(part.categories) == len(part) == 2
