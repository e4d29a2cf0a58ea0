"""Configuration files: YAML, `extends`, overrides, and the way back to YAML."""

import re

import pytest
import yaml
from pydantic import ValidationError

from jaxalign.config import ConfigError, dump_config, load_config, parse_config

LOSS_SECTIONS = [
    {"name": "dpo"},
    {"name": "safe_dpo", "delta": 1.0},
    {"name": "cat_dpo", "margin_reduce": "max"},
    {"name": "b_dpo", "beta": 0.05},
    {"name": "cat_b_dpo", "margin_reduce": "sum"},
]


@pytest.fixture
def file(tmp_path, settings):
    """The same as a file."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_file_equals_its_plain_values(file, settings):
    assert load_config(file) == parse_config(settings, "test")


@pytest.mark.parametrize("loss", LOSS_SECTIONS, ids=lambda loss: loss["name"])
def test_dumped_configuration_reads_back_as_the_same(settings, loss):
    config = parse_config(settings | {"loss": loss}, "test")
    assert parse_config(yaml.safe_load(dump_config(config)), "dump") == config


def test_dump_of_every_optional_section_reads_back_as_the_same(tmp_path, settings):
    sections = {
        "model": settings["model"] | {"lora": {"rank": 4, "targets": ["query", "value"]}},
        "loss": {"name": "cat_b_dpo"},
        "adaptive": {
            "violation": {"temperature": 0.5},
            "margin": {"target_rate": {"Drugs": 0.01, "default": 0.1}, "initial": 0.3},
            "balance": {"weights": "softmax", "temperature": 0.2},
        },
        "reference": {"mode": "adapter_base"},
        "evaluation": {"every_steps": 2},
        "mesh": {"data": "rest", "fsdp": 2},
    }
    config = parse_config(settings | sections, "test")
    path = write(tmp_path / "dump.yaml", dump_config(config))
    assert load_config(path) == config


def test_dump_writes_every_default_out(settings):
    dumped = yaml.safe_load(dump_config(parse_config(settings, "test")))
    assert dumped["optimizer"]["b2"] == 0.999
    assert dumped["adaptive"]["margin"]["maximum"] == 0.5
    assert dumped["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1}


def test_configuration_is_frozen(settings):
    config = parse_config(settings, "test")
    with pytest.raises(ValidationError, match="frozen"):
        config.train.batch_size = 4


@pytest.mark.parametrize("text", ["1e-6", "1.0e-6", "1E-6", "0.000001", ".1e-5"])
def test_number_in_any_notation_is_a_float(file, text):
    assert load_config(file, [f"optimizer.learning_rate={text}"]).optimizer.learning_rate == pytest.approx(
        1e-6
    )
    plain = re.sub(r"learning_rate: \S+", f"learning_rate: {text}", file.read_text())
    assert load_config(write(file, plain)).optimizer.learning_rate == pytest.approx(1e-6)


def test_whole_number_may_have_an_exponent(file):
    assert load_config(file, ["train.num_steps=1e3"]).train.num_steps == 1000


@pytest.mark.parametrize("text", ["1e", "e-6", "1e-6x", "model-1e-6"])
def test_text_that_only_looks_like_a_number_stays_text(file, text):
    assert str(load_config(file, [f"model.path={text}"]).model.path) == text


def test_overrides_are_laid_over_the_file_in_order(file):
    config = load_config(
        file, ["train.batch_size=2", "train.batch_size=4", "loss={name: dpo, beta: 0.3}", "model.lora.rank=2"]
    )
    assert config.train.batch_size == 4
    assert config.train.num_steps == 5  # the rest of the section stays
    assert (config.loss.name, config.loss.beta) == ("dpo", 0.3)
    assert config.model.lora.rank == 2


def test_override_null_switches_an_option_off(file):
    assert load_config(file, ["optimizer.max_grad_norm=null"]).optimizer.max_grad_norm is None


@pytest.mark.parametrize("override", ["train.batch_size", "=4", ".batch_size=4", "train..batch_size=4"])
def test_override_of_the_wrong_form_shows_the_right_one(file, override):
    message = (
        rf"--set '{re.escape(override)}': expected section\.key=value, such as optimizer\.learning_rate=1e-6"
    )
    with pytest.raises(ConfigError, match=message):
        load_config(file, [override])


def test_override_whose_value_is_no_yaml_is_shown(file):
    with pytest.raises(ConfigError, match=r"--set 'loss=\{name: dpo': the value is not valid YAML"):
        load_config(file, ["loss={name: dpo"])


def test_override_of_an_unknown_key_is_an_error(file):
    with pytest.raises(ConfigError, match=r"train\.batchsize: unknown key; did you mean batch_size\?"):
        load_config(file, ["train.batchsize=4"])


def test_extended_file_is_laid_under_section_by_section(tmp_path, file):
    (tmp_path / "more").mkdir()
    middle = write(tmp_path / "middle.yaml", f"extends: {file.name}\ntrain: {{batch_size: 4}}\n")
    top = write(
        tmp_path / "more" / "top.yaml",
        f"extends: ../{middle.name}\ntrain: {{num_steps: 9}}\nloss: {{beta: 0.2}}\n",
    )
    config = load_config(top)
    assert (config.train.batch_size, config.train.num_steps) == (4, 9)
    assert (config.loss.name, config.loss.beta) == ("cat_b_dpo", 0.2)


def test_list_of_the_extending_file_replaces_the_list(tmp_path, file):
    top = write(tmp_path / "top.yaml", f"extends: {file.name}\ndata: {{categories: [Fraud]}}\n")
    assert load_config(top).data.category_names == ("Fraud",)


def test_file_that_extends_itself_is_an_error_with_the_chain(tmp_path):
    write(tmp_path / "a.yaml", "extends: b.yaml\n")
    write(tmp_path / "b.yaml", "extends: a.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml extends itself: a\.yaml -> b\.yaml -> a\.yaml"):
        load_config(tmp_path / "a.yaml")


def test_missing_extended_file_is_an_error_that_names_it(tmp_path):
    write(tmp_path / "a.yaml", "extends: gone.yaml\n")
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*gone\.yaml: No such file"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("value", ["[a.yaml, b.yaml]", "3", "{a: b}"])
def test_extends_that_is_no_file_name_is_an_error(tmp_path, value):
    path = write(tmp_path / "a.yaml", f"extends: {value}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: extends: expected the name of one file, got"):
        load_config(path)


def test_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")


def test_folder_in_place_of_a_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*: Is a directory"):
        load_config(tmp_path)


def test_file_that_is_no_text_is_an_error(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"model: \xff\xfe")
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*a\.yaml: .*utf-8"):
        load_config(tmp_path / "a.yaml")


def test_key_given_twice_is_an_error_with_its_line(tmp_path):
    path = write(tmp_path / "a.yaml", "train:\n  batch_size: 4\n  num_steps: 1\n  batch_size: 8\n")
    with pytest.raises(ConfigError, match=r"(?s)batch_size given twice.*line 2"):
        load_config(path)


def test_section_given_twice_is_an_error(tmp_path):
    path = write(tmp_path / "a.yaml", "train: {num_steps: 1}\nloss: {name: dpo}\ntrain: {batch_size: 4}\n")
    with pytest.raises(ConfigError, match="train given twice"):
        load_config(path)


def test_yaml_merge_key_is_not_a_key_given_twice(tmp_path, file):
    text = "extends: config.yaml\n"
    path = write(
        tmp_path / "a.yaml", text + "train: {num_steps: 3}\nmesh:\n  <<: {data: 2, fsdp: 2}\n  fsdp: 4\n"
    )
    mesh = load_config(path).mesh
    assert (mesh.data, mesh.fsdp) == (2, 4)


def test_text_that_is_no_yaml_is_an_error_with_its_place(tmp_path):
    path = write(tmp_path / "a.yaml", "train: [1, 2\nloss: x\n")
    with pytest.raises(ConfigError, match=r"(?s)a\.yaml is not valid YAML: .*line 2"):
        load_config(path)


@pytest.mark.parametrize(("text", "got"), [("- a\n- b\n", "list"), ("", "NoneType"), ("text\n", "str")])
def test_file_without_sections_is_an_error(tmp_path, text, got):
    path = write(tmp_path / "a.yaml", text)
    with pytest.raises(ConfigError, match=f"expected a mapping of sections, got {got}"):
        load_config(path)


def test_yaml_that_would_run_code_is_refused(tmp_path):
    path = write(tmp_path / "a.yaml", "model: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(path)
