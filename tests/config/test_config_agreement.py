"""What is said of settings that are fine alone and do not go together."""

import re

import pytest

from jaxalign.config import ConfigError, parse_config
from tests import tiny
from tests.config.errors import error_of


def test_warm_up_as_long_as_the_run_is_refused_when_the_configuration_is_read(settings):
    message = error_of(settings, optimizer={"warmup_steps": 5})
    assert "optimizer.warmup_steps=5 leaves nothing of train.num_steps=5; lower it" in message


@pytest.mark.parametrize("lengths", [{}, {"num_epochs": 2, "num_steps": 5}])
def test_length_of_the_run_is_given_exactly_once(settings, lengths):
    message = error_of(settings | {"train": {"batch_size": 8}}, train=lengths)
    assert "train: give exactly one of train.num_steps and train.num_epochs" in message


@pytest.mark.parametrize(
    ("loss", "section", "options"),
    [
        ("dpo", "margin", {"initial": 0.5}),
        ("safe_dpo", "margin", {"step_size": 0.2}),
        ("b_dpo", "margin", {"initial": 0.5}),
        ("dpo", "balance", {"weights": "none"}),
        ("cat_dpo", "balance", {"scale": 2.0}),
    ],
)
def test_adaptive_section_that_the_loss_does_not_read_is_refused(settings, loss, section, options):
    message = error_of(settings, loss={"name": loss}, adaptive={section: options})
    assert f"adaptive.{section} has no effect with loss {loss}; remove it" in message


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        (
            "margin",
            {"initial": 3.0},
            "adaptive.margin.initial=3.0 is not between minimum=0.0 and maximum=0.5",
        ),
        ("margin", {"ema_rate": 0.0}, "adaptive.margin.ema_rate=0.0 must be above 0"),
        ("margin", {"target_rate": 1.5}, "adaptive.margin.target_rate=1.5 must lie between 0 and 1"),
        ("margin", {"update": "multiplicative"}, "minimum=0.0 must be positive for update='multiplicative'"),
        ("balance", {"weights": "softmax"}, "adaptive.balance.temperature=None with weights='softmax'"),
        ("balance", {"alpha": 0.5}, "adaptive.balance.alpha=0.5 with weights='ratio'"),
        ("balance", {"maximum_scale": 4.0}, "maximum_scale=4.0 has no effect on a constant scale"),
    ],
)
def test_options_of_the_rules_are_checked_and_named(settings, section, options, message):
    assert message in error_of(settings, adaptive={section: options})


def test_target_rate_by_category_follows_the_order_of_the_categories(settings):
    rates = {"Privacy Violation": 0.2, "default": 0.1, "Drugs": 0.01}
    config = parse_config(settings | {"adaptive": {"margin": {"target_rate": rates}}}, "test")
    assert config.make_objective().rule_configs["margin"].target_rate == (0.1, 0.01, 0.2)


def test_target_rate_for_every_category_needs_no_default(settings):
    rates = dict.fromkeys(tiny.CATEGORIES, 0.3)
    config = parse_config(settings | {"adaptive": {"margin": {"target_rate": rates}}}, "test")
    assert config.make_objective().rule_configs["margin"].target_rate == (0.3, 0.3, 0.3)


def test_target_rate_of_an_unknown_category_lists_the_known_ones(settings):
    message = error_of(settings, adaptive={"margin": {"target_rate": {"Violense": 0.1, "default": 0.1}}})
    assert "adaptive.margin.target_rate names unknown categories ['Violense']; known: ['Drugs'" in message


def test_target_rate_that_leaves_categories_out_names_them(settings):
    message = error_of(settings, adaptive={"margin": {"target_rate": {"Violence": 0.1}}})
    assert (
        "adaptive.margin.target_rate lacks ['Drugs', 'Privacy Violation']; add them or a `default`" in message
    )


def test_reference_without_adapter_cannot_be_the_adapter_base(settings):
    message = error_of(settings, reference={"mode": "adapter_base"})
    assert "reference.mode adapter_base needs model.lora; use precomputed or online" in message


@pytest.mark.parametrize("name", ["every_steps", "max_pairs"])
def test_evaluation_without_held_out_data_is_refused_by_its_key(settings, name):
    message = error_of(settings, data={"heldout": []}, evaluation={name: 2})
    assert (
        f"evaluation.{name} has no effect without data.heldout or data.heldout_fraction; remove it" in message
    )


@pytest.mark.parametrize(
    "sections",
    [
        {"loss": {"name": "dpo"}, "reference": {"mode": "online"}},
        {"loss": {"name": "simpo"}, "reference": {"mode": "none"}},
        {"loss": {"name": "dpo"}, "reference": {"file": "reference.safetensors"}},
    ],
    ids=["online", "none", "file"],
)
def test_evaluation_batch_size_is_refused_where_no_pass_has_it(settings, sections):
    message = error_of(settings, data={"heldout": []}, evaluation={"batch_size": 2}, **sections)
    assert "evaluation.batch_size has no effect without data.heldout or data.heldout_fraction" in message


@pytest.mark.parametrize(
    "sections",
    [
        {"loss": {"name": "dpo"}},
        {"loss": {"name": "cat_b_dpo"}, "reference": {"mode": "online"}},
        {"loss": {"name": "modpo", "margin_model": "margin"}, "reference": {"file": "reference.safetensors"}},
    ],
    ids=["reference-pass", "mutual-information", "margin-model"],
)
def test_evaluation_batch_size_of_passes_before_training_needs_no_held_out_data(settings, sections):
    data = {**settings["data"], "heldout": []}
    changed = {**settings, "data": data, "evaluation": {"batch_size": 2}, **sections}
    assert parse_config(changed, "run.yaml").evaluation_batch_size() == 2


def test_batch_that_micro_batches_do_not_divide_is_refused(settings):
    message = error_of(settings, train={"batch_size": 8, "num_micro_batches": 3})
    assert "batch_size=8 is not divisible by num_micro_batches=3" in message


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"train": {"batch_size": 100, "num_steps": 1}, "mesh": {"data": 4, "fsdp": 8}},
            "train.batch_size / train.num_micro_batches = 100 is not divisible by data * fsdp = 32; "
            "nearest: 96 or 128",
        ),
        (
            {
                "train": {"batch_size": 12, "num_micro_batches": 2, "num_steps": 1},
                "mesh": {"fsdp": 32, "data": 1},
            },
            "train.batch_size / train.num_micro_batches = 6 is not divisible by data * fsdp = 32; nearest: 32",
        ),
        (
            {"train": {"batch_size": 64, "num_steps": 1}, "mesh": {}, "evaluation": {"batch_size": 40}},
            "evaluation.batch_size = 40 is not divisible by data * fsdp = 32; nearest: 32 or 64",
        ),
        (
            {"mesh": {"data": 5}},
            "mesh data=5 * fsdp=1 * tensor=1 needs 5 devices, found 32; change the mesh section",
        ),
    ],
)
def test_batch_that_does_not_spread_over_the_mesh_names_the_nearest_sizes(settings, sections, message):
    config = parse_config(settings | sections, "test")
    with pytest.raises(ConfigError, match=re.escape(message)):
        config.check_devices(32)


def test_batch_that_spreads_over_the_mesh_passes(settings):
    train = {"batch_size": 64, "num_micro_batches": 4, "num_steps": 1}
    config = parse_config(settings | {"train": train, "mesh": {"tensor": 2}}, "test")
    config.check_devices(32)
    assert config.micro_batch_size() == 16


def test_bf16_parameters_without_an_adapter_are_refused(tmp_path) -> None:
    settings = tiny.run_settings(tmp_path, model={"param_dtype": "bfloat16"})
    with pytest.raises(ConfigError, match=r"param_dtype bfloat16 needs model.lora.* use param_dtype float32"):
        parse_config(settings, "test")


@pytest.mark.parametrize("name", ["aot", "aot_unpaired", "beta_dpo"])
def test_loss_of_a_whole_batch_refuses_micro_batches(settings, name):
    train = settings["train"] | {"num_micro_batches": 2}
    message = error_of(settings, loss={"name": name}, train=train)
    assert f"loss {name} compares the pairs of a whole batch" in message
    assert "num_micro_batches=2 would change its meaning; set it to 1" in message


def test_sampling_by_margin_needs_a_loss_with_margins(settings):
    data = settings["data"] | {"sampling": {"strategy": "margin"}}
    message = error_of(settings, loss={"name": "dpo"}, data=data)
    assert "data.sampling.strategy margin follows the violation rates of the margin rule" in message
    allowed = {"loss": {"name": "cat_dpo"}, "data": data}
    message = error_of(settings, **allowed)
    assert "rows.layout packed fixes the shape of all of them in advance; set rows.layout: padded" in message
    parse_config(settings | allowed | {"rows": {"layout": "padded"}}, "run.yaml")


def test_source_of_mutual_information_needs_a_loss_that_reads_it(settings):
    message = error_of(settings, loss={"name": "dpo"}, adaptive={"mi_source": "policy"})
    assert "adaptive.mi_source has no effect with loss dpo; remove it" in message


def test_modpo_needs_its_margin_model(settings):
    assert "loss.margin_model: missing" in error_of(settings, loss={"name": "modpo"})


def test_reference_may_be_left_out_only_where_the_loss_reads_none(settings):
    message = error_of(settings, loss={"name": "dpo"}, reference={"mode": "none"})
    assert "reference.mode none, but loss dpo compares the policy with a reference" in message
    parse_config(settings | {"loss": {"name": "orpo"}, "reference": {"mode": "none"}}, "run.yaml")


def test_balance_without_weights_and_scale_is_refused_as_the_plain_loss(settings):
    message = error_of(settings, loss={"name": "cat_b_dpo"}, adaptive={"balance": {"weights": "none"}})
    assert "loss cat_b_dpo with adaptive.balance.weights none and scale 1 is cat_dpo; use that" in message


def test_policy_mi_without_weights_has_no_effect(settings):
    adaptive = {"balance": {"weights": "none", "scale": 2.0}, "mi_source": "policy"}
    message = error_of(settings, loss={"name": "b_dpo"}, adaptive=adaptive)
    assert "adaptive.mi_source policy has no effect with balance.weights none" in message


@pytest.mark.parametrize("loss", ["dpo", "safe_dpo", "cat_dpo"])
@pytest.mark.parametrize("mode", ["online", "adapter_base"])
def test_reference_file_that_nothing_reads_is_refused(settings, loss, mode):
    message = error_of(
        settings,
        loss={"name": loss},
        model={"lora": {"rank": 2}},
        reference={"mode": mode, "file": "reference.safetensors"},
    )
    assert f"reference.file has no effect with reference.mode {mode} and loss {loss}" in message
    assert "remove it" in message


@pytest.mark.parametrize(("loss", "mode"), [("b_dpo", "online"), ("dpo", "precomputed")])
def test_reference_file_that_is_read_is_accepted(settings, loss, mode):
    changed = {"loss": {"name": loss}, "reference": {"mode": mode, "file": "reference.safetensors"}}
    assert parse_config(settings | changed, "test").reference.file.name == "reference.safetensors"
