"""What a model card must say."""

import yaml

from jaxalign.hf.card import model_card


def _card(**changes: object) -> str:
    options = {
        "title": "tiny-cat-b-dpo",
        "method": "cat_b_dpo",
        "data": ["pairs.jsonl: 10 pairs"],
        "base_model": "someone/tiny",
        "settings": {"beta": 0.1, "steps": 20},
        "categories": {"violence": {"pairs": 12, "reward accuracy": 0.75}, "drugs": {"pairs": 3}},
    }
    return model_card(**(options | changes))


def test_card_states_data_method_and_figures() -> None:
    card = _card()
    assert "# tiny-cat-b-dpo" in card
    assert "Trained with `cat_b_dpo` by jaxalign" in card
    assert "| beta | 0.1 |" in card
    assert "* pairs.jsonl: 10 pairs" in card
    assert "| category | pairs | reward accuracy |\n|---|---:|---:|\n| violence | 12 | 0.750 |" in card
    assert "| drugs | 3 | – |" in card


def test_front_matter_is_yaml_and_names_hub_models_only() -> None:
    front = yaml.safe_load(_card().split("---")[1])
    assert front["base_model"] == "someone/tiny"
    assert front["library_name"] == "transformers"
    local = yaml.safe_load(_card(base_model="/home/me/model").split("---")[1])
    assert "base_model" not in local
    assert yaml.safe_load(_card(adapter=True).split("---")[1])["library_name"] == "peft"


def test_card_says_what_is_reconstructed() -> None:
    assert "reconstructed from the published abstracts" in _card()
    assert "2604.17299" in _card(method="cat_dpo")
    assert "2603.22829" not in _card(method="cat_dpo")
    assert "2603.22829" in _card(method="b_dpo")
    assert "reconstructed" not in _card(method="dpo")


def test_card_without_figures_says_so() -> None:
    assert "None were measured before this export." in _card(categories=None)


def test_markup_in_category_names_cannot_break_the_table() -> None:
    card = _card(categories={"a | b\n<script>": {"n": 1}})
    assert "| a \\| b \\<script\\> | 1 |" in card
