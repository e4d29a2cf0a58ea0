"""The whole command on a slice of four chips, with a tiny model."""

import json
import re

import pytest
import yaml
from typer.testing import CliRunner

from jaxalign.cli import app
from jaxalign.config import ConfigError
from jaxalign.parallel.topology import TopologyError
from tests import tiny

ARCHITECTURE = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    settings = tiny.run_settings(
        folder, mesh={"data": 1, "fsdp": 4}, model={"dtype": "bfloat16", "remat": "full"}
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "architecture.json").write_text(json.dumps(ARCHITECTURE))
    return folder


def run_plan(folder, *options, topology="v5e:2x2"):
    """Exit status and output of the command."""
    arguments = ["plan", str(folder / "config.yaml"), "--topology", topology, *options]
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def figures(folder, v5e4):
    """The JSON of one plan."""
    code, output = run_plan(folder, "--architecture", str(folder / "architecture.json"), "--json")
    (found,) = json.loads(output)
    assert code == 0
    return found


def test_plan_fits_and_bounds_the_step(figures):
    assert figures["fits"]
    assert figures["bound_seconds"]["step"] == max(
        figures["bound_seconds"][name] for name in ("compute", "memory", "interconnect")
    )
    assert 0 < figures["mfu_without_overlap"] < figures["mfu_bound"] < 1


def test_memory_of_the_state_follows_from_shapes(figures):
    attention = 2 * 128 * 128 + 2 * 128 * 64
    params = 2 * 512 * 128 + 3 * (attention + 3 * 128 * 256 + 2 * 128) + 128
    memory = figures["memory"]
    # Everything but the scales of norms is split over the four devices.
    assert memory["trained parameters"] == pytest.approx(4 * params / 4, rel=0.01)
    assert memory["optimizer state"] == pytest.approx(2 * memory["trained parameters"], rel=0.01)
    assert memory["needed"] == sum(
        size for name, size in memory.items() if name not in ("needed", "capacity")
    )


def test_program_does_at_least_what_must_be_done(figures):
    assert figures["flops"]["compiled"] > figures["flops"]["required"] > 0
    assert figures["uncounted"] == {"loops": 0, "kernels": 0}


def test_weights_are_received_in_both_directions(figures):
    """Forward, again where it is recomputed, and gradients back; 3/4 of each are on other devices."""
    layers = 3 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256) * 2  # bfloat16
    received = sum(total["bytes"] for total in figures["collectives"].values())
    assert received > 3 * layers * 3 / 4


def test_attention_kernels_do_at_least_what_is_seen(figures):
    """Every response of 32 tokens sees its prompt of 64; two products forward, four backward, in three layers."""
    seen = 8 * (2 * 96 * 97 // 2 - 64 * 65 // 2)
    assert figures["flops"]["attention_kernels"] > 3 * 4 * seen * 3 * 2 * 64 / 4


def test_transfers_take_as_long_as_the_links_of_a_corner_allow(figures):
    whole = [total for total in figures["collectives"].values() if total["group_sizes"] == [4]]
    assert whole
    for total in whole:
        assert total["seconds"] == pytest.approx(total["bytes"] / (2 * 50e9))


def test_what_does_not_fit_says_so_with_status_one(folder, v5e4):
    code, output = run_plan(
        folder,
        *("--architecture", "llama3-8b", "--set", "mesh.fsdp=1"),
        *("--set", "train.batch_size=1"),
        topology="v5e:1x1",
    )
    assert code == 1
    assert re.search(
        r"does not fit: \d+\.\d+ GiB per device are needed, 15\.75 GiB", " ".join(output.split())
    )


def test_unknown_topology_is_refused(folder):
    with pytest.raises(TopologyError, match="unknown chip 'v3'"):
        run_plan(folder, topology="v3:2x2")


def test_mesh_that_does_not_fit_the_slice_is_refused(folder, v5e4):
    with pytest.raises(ConfigError, match="mesh data=1 \\* fsdp=4 \\* tensor=1 needs 4 devices, found 16"):
        run_plan(folder, topology="v5e:4x4")


def test_unknown_architecture_is_refused(folder, v5e4):
    with pytest.raises(
        ConfigError, match=r"--architecture gpt-5: expected a config\.json, or one of smollm2-135m"
    ):
        run_plan(folder, "--architecture", "gpt-5")


def test_model_that_is_not_here_needs_an_architecture(folder, v5e4):
    with pytest.raises(ConfigError, match=r"model\.path .*nowhere is not here; .* give --architecture"):
        run_plan(folder, "--set", "model.path=nowhere")


def test_pairs_longer_than_the_rows_end_with_the_options_that_shorten_them(folder, v5e4):
    options = ("--architecture", str(folder / "architecture.json"), "--set", "rows.length=128")
    message = (
        r"the longest pair has 192 tokens, but rows\.length=128; .* --prompt-tokens and --response-tokens"
    )
    with pytest.raises(ConfigError, match=message):
        run_plan(folder, *options, "--response-tokens", "64")
