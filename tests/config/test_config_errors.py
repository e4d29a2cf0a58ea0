"""What is said of a wrong key or value: the key, the value, what is allowed."""

import dataclasses
import re

import pytest

from jaxalign.adaptive import BalanceConfig, MarginConfig
from jaxalign.config import ConfigError, parse_config
from jaxalign.config.schema import BalanceSettings, MarginSettings
from jaxalign.training.loss_table import LOSSES
from tests.config.errors import error_of


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optimzer": {}}, "optimzer: unknown key; did you mean optimizer?"),
        (
            {"optimizer": {"learning_rat": 1e-6}},
            "optimizer.learning_rat: unknown key; did you mean learning_rate?",
        ),
        (
            {"adaptive": {"margin": {"step": 0.1}}},
            "adaptive.margin.step: unknown key; did you mean step_size?",
        ),
        ({"model": {"lora": {"ranks": 4}}}, "model.lora.ranks: unknown key; did you mean rank?"),
        (
            {"logging": {"wandb": True}},
            "logging.wandb: unknown key; known here: project, tensorboard, trackers",
        ),
        ({"logging": {"trackers": ["mlflow"]}}, "logging.trackers.0: Input should be 'wandb' or 'trackio'"),
        ({"logging": {"trackers": ["wandb", "wandb"]}}, "logging.trackers names wandb twice"),
        ({"logging": {"project": "x"}}, "logging.project=x has no effect without logging.trackers"),
        (
            {"data": {"train": [{"format": "plain", "pth": "a.jsonl"}]}},
            "data.train.0.pth: unknown key; did you mean path?",
        ),
        ({"loss": {"name": "dpo", "bta": 0.1}}, "loss.bta: unknown key; did you mean beta?"),
        ({"loss": {"name": "dpo", "qqq": 1}}, "loss.qqq: unknown key; known here: beta, name"),
        (
            {"loss": {"name": "dpo", "gamma": 1}},
            "loss.gamma: unknown key of this loss; it is an option of simpo, alphapo",
        ),
        (
            {"loss": {"name": "aot", "label_smoothing": 0.1}},
            "loss.label_smoothing: unknown key of this loss; it is an option of cdpo, robust_dpo, exo",
        ),
    ],
)
def test_unknown_key_suggests_the_nearest_known_one(settings, sections, message):
    assert message in error_of(settings, **sections)


@pytest.mark.parametrize(
    ("loss", "owners"),
    [
        ({"name": "dpo", "delta": 1.0}, "delta: unknown key of this loss; it is an option of safe_dpo"),
        (
            {"name": "b_dpo", "margin_reduce": "max"},
            "margin_reduce: unknown key of this loss; it is an option of cat_dpo, cat_b_dpo",
        ),
    ],
)
def test_option_of_another_loss_names_that_loss(settings, loss, owners):
    message = error_of(settings, loss=loss).removeprefix("run.yaml:\n  ")
    owner, expected = message.rpartition("option of ")[2], owners.rpartition("option of ")[2]
    assert message.startswith("loss." + owners.rpartition("option of ")[0])
    assert sorted(owner.split(", ")) == sorted(expected.split(", "))


@pytest.mark.parametrize("section", ["model", "data", "loss", "train"])
def test_missing_section_is_named(settings, section):
    assert f"{section}: missing, and it has no default" in error_of(settings, without=[section])


def test_missing_option_is_named(settings):
    assert "model.path: missing, and it has no default" in error_of({**settings, "model": {}})


def test_loss_without_a_name_lists_the_names(settings):
    message = error_of(settings, loss={"beta": 0.1})
    assert f"loss.name: missing; one of {', '.join(LOSSES)}" in message


def test_unknown_loss_lists_the_names(settings):
    message = error_of(settings, loss={"name": "simp"})
    assert f"loss.name: did you mean simpo? got 'simp', one of {', '.join(LOSSES)}" in message


@pytest.mark.parametrize(
    ("sections", "key", "shown"),
    [
        ({"train": {"batch_size": "many"}}, "train.batch_size", "got 'many'"),
        ({"train": {"batch_size": 0}}, "train.batch_size", "greater than or equal to 1, got 0"),
        ({"train": {"batch_size": 1.5}}, "train.batch_size", "got 1.5"),
        ({"optimizer": {"learning_rate": -1.0}}, "optimizer.learning_rate", "greater than 0, got -1.0"),
        ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate", "finite number, got nan"),
        ({"model": {"dtype": "float16"}}, "model.dtype", "'float32' or 'bfloat16', got 'float16'"),
        ({"logging": {"tensorboard": "maybe"}}, "logging.tensorboard", "got 'maybe'"),
        ({"loss": {"name": "dpo", "beta": "x"}}, "loss.beta", "got 'x'"),
        ({"train": 3}, "train", "got 3"),
        ({"mesh": {"fsdp": "all"}}, "mesh.fsdp", "got 'all'"),
        ({"reference": {"mode": "cached"}}, "reference.mode", "got 'cached'"),
        ({"adaptive": {"violation": {"temperature": 0.0}}}, "adaptive.violation.temperature", "got 0.0"),
    ],
)
def test_wrong_value_is_shown_with_its_key_and_what_is_allowed(settings, sections, key, shown):
    message = error_of(settings, **sections)
    assert re.search(rf"^  {re.escape(key)}[.:]", message, re.M), message
    assert shown in message


def with_value(settings, key, value):
    """A copy of the settings with the value at a dotted key."""
    first, _, rest = key.partition(".")
    return {**settings, first: with_value(settings.get(first, {}), rest, value) if rest else value}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.batch_size", True, "valid integer"),
        ("train.batch_size", "8", "valid integer"),
        ("train.batch_size", 8.0, "valid integer"),
        ("train.num_micro_batches", False, "valid integer"),
        ("data.seed", "0", "valid integer"),
        ("data.heldout_fraction", "0.5", "valid number"),
        ("data.safety_transform", 0, "valid boolean"),
        ("data.system_prompt", 3, "valid string"),
        ("model.lora", {"rank": True}, "valid integer"),
        ("model.path", 3, "path"),
        ("optimizer.learning_rate", "1e-3", "valid number"),
        ("optimizer.max_grad_norm", True, "valid number"),
        ("loss.beta", True, "valid number"),
        ("mesh.fsdp", "8", "Input should be 'rest'"),
        ("mesh.fsdp", True, "Input should be 'rest'"),
        ("adaptive.margin.target_rate", True, "valid number"),
        ("adaptive.margin.target_rate", {"default": True}, "valid number"),
        ("adaptive.balance.scale_by_gradient_weight", 1, "valid boolean"),
        ("logging.tensorboard", "yes", "valid boolean"),
        ("logging.tensorboard", 1, "valid boolean"),
    ],
)
def test_value_of_another_type_is_refused_not_converted(settings, key, value, expected):
    message = error_of(with_value(settings, key, value))
    assert f"  {key}" in message
    assert expected in message
    if not isinstance(value, dict):
        assert f"got {value!r}" in message


def test_integer_is_a_fine_float_and_a_list_a_fine_tuple(settings):
    config = parse_config(with_value(settings, "loss.beta", 1), "test")
    assert (config.loss.beta, type(config.loss.beta)) == (1.0, float)
    assert config.data.categories == tuple(settings["data"]["categories"])


def test_options_of_the_rules_agree_in_name_and_default():
    for section, rule in ((MarginSettings, MarginConfig), (BalanceSettings, BalanceConfig)):
        fields = {field.name: field.default for field in dataclasses.fields(rule)}
        fields.pop("num_categories", None)  # the length of data.categories
        assert fields.keys() == section.model_fields.keys()
        assert {
            name: default for name, default in fields.items() if default is not dataclasses.MISSING
        }.items() <= {name: field.default for name, field in section.model_fields.items()}.items()


def test_error_within_a_list_is_not_followed_by_one_about_the_list(settings):
    message = error_of(settings, data={"train": [{"format": "plain", "path": "a.jsonl", "viw": "better"}]})
    assert message == "run.yaml:\n  data.train.0.viw: unknown key; did you mean view?"


def test_empty_list_is_an_error_of_its_own(settings):
    assert "data.train: Tuple should have at least 1 item" in error_of(settings, data={"train": []})


def test_every_wrong_key_is_listed_at_once(settings):
    message = error_of(settings, train={"batch_size": 0}, optimizer={"b1": 2.0}, optimzer={})
    assert len(message.splitlines()) == 4
    for key in ("train.batch_size", "optimizer.b1", "optimzer"):
        assert f"  {key}:" in message


def test_keys_that_are_no_text_are_refused(settings):
    assert "7" in error_of({**settings, 7: {}})


def test_alternatives_of_a_key_are_one_line() -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({"model": {"path": "m"}, "mesh": {"fsdp": "all"}}, "test")
    (line,) = [line for line in str(error.value).splitlines() if "mesh" in line]
    assert line.strip().startswith("mesh.fsdp: Input should be a valid integer")
    assert "or Input should be 'rest', got 'all'" in line


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "safe_dpo", "delta": 0},
        {"name": "rpo", "alpha": 0},
        {"name": "dpop", "lam": 0},
        {"name": "odpo", "alpha": 0},
        {"name": "modpo", "margin_model": "m", "margin_weight": 0},
        {"name": "cdpo", "label_smoothing": 0},
    ],
    ids=lambda loss: loss["name"],
)
def test_option_that_turns_the_loss_into_dpo_is_refused(settings, loss):
    assert f"loss.{list(loss)[-1]}: Input should be greater than 0" in error_of(settings, loss=loss)
