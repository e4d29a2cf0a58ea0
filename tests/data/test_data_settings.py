"""Laws of the data settings: an option without effect is an error that says which and why."""

import pytest
from pydantic import ValidationError

from jaxalign.data.schema import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES
from jaxalign.data.settings import DataConfig, SourceConfig

PKU = {"format": "pku", "path": "a.jsonl"}
HH = {"format": "hh", "path": "b.jsonl"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, "exactly one of `path`"),
        ({"name": "some/set"}, "exactly one of `path`"),
        ({"split": "test"}, "`split` has an effect only together with `name`"),
        ({"revision": "main", "subset": "x"}, "`subset`, `revision` has an effect only together with `name`"),
        ({"format": "hh", "view": "better"}, "`view` has an effect only with format: pku"),
        ({"fields": {}}, "`fields` has an effect only with format: plain"),
        ({"unsafe_threshold": 0.5}, "`unsafe_threshold` has an effect only with format: plain"),
        ({"format": "csv"}, "'pku', 'beavertails', 'hh', 'trl' or 'plain'"),
        ({"view": "best"}, "'better', 'safer', 'safe_better' or 'safedpo'"),
        ({"weight": 0.0}, "greater than 0"),
        ({"rows": 3}, "Extra inputs are not permitted"),
    ],
)
def test_source_refuses_option(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SourceConfig(**(PKU | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": []}, "at least 1 item"),
        ({"heldout": [PKU], "heldout_fraction": 0.1}, "give one of them"),
        ({"prompt_format": "raw", "system_prompt": "Be kind."}, "`system_prompt` has an effect only"),
        ({"categories": []}, "distinct names, at least one"),
        ({"categories": ["a", "a"]}, "distinct names, at least one"),
        ({"categories": ["a;b"]}, "should match pattern"),
        ({"categories": ["all", "x"]}, r"may not hold \['all'\]: tables have rows so called"),
        ({"categories": ["(none)", "(no category)"]}, r"may not hold \['\(none\)', '\(no category\)'\]"),
        ({"categories": ["Drugs ", "x"]}, r"holds \['Drugs '\]: names in the data are read without outer"),
        ({"categories": [" "]}, "without outer spaces; remove these"),
        ({"seed": 3}, "`seed: 3` has an effect only with `weight`s"),
        ({"train": [PKU | {"weight": 1.0}]}, "share of the mix"),
        ({"train": [PKU | {"weight": 1.0}, HH]}, "share of the mix"),
        ({"heldout": [PKU | {"weight": 1.0}]}, "no effect in `heldout`"),
        ({"train": [PKU | {"view": "safedpo"}], "safety_transform": True}, "already holds the transform"),
        ({"train": [HH], "safety_transform": True}, "can change no pair"),
        ({"train": [PKU | {"view": "safe_better"}], "safety_transform": True}, "can change no pair"),
        ({"max_response_length": 1}, "greater than or equal to 2"),
        ({"heldout_fraction": 1.0}, "less than 1"),
    ],
)
def test_data_config_refuses_option(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig(**({"train": [PKU]} | options))


def test_dumped_config_loads_to_the_same_config() -> None:
    plain = {"format": "plain", "path": "c.csv", "fields": {"categories": "kind"}, "unsafe_threshold": 0.5}
    config = DataConfig(train=[PKU, plain], heldout_fraction=0.2, safety_transform=True)
    assert DataConfig(**config.model_dump()) == config
    assert DataConfig.model_validate_json(config.model_dump_json()) == config


def test_seed_is_taken_with_weights() -> None:
    assert DataConfig(train=[PKU | {"weight": 1.0}, HH | {"weight": 2.0}], seed=3).seed == 3


def test_category_names_follow_the_config() -> None:
    assert DataConfig(train=[PKU]).category_names == PKU_CATEGORIES
    assert DataConfig(train=[PKU], categories="beavertails").category_names == BEAVERTAILS_CATEGORIES
    assert DataConfig(train=[PKU], categories=["b", "a"]).category_names == ("b", "a")
    assert (len(set(PKU_CATEGORIES)), len(set(BEAVERTAILS_CATEGORIES))) == (19, 14)
