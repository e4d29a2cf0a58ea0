"""The benchmarks run, on toys, and what they count and compare is right. Nothing here is timed."""

import dataclasses
import importlib
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxalign.config import parse_config
from jaxalign.data.settings import DataConfig
from jaxalign.data.sources import load_pairs
from jaxalign.data.tokenize import tokenize_pairs
from jaxalign.models.config import decoder_config_from_hf
from jaxalign.run.plan.workload import assumed_workload
from jaxalign.run.plan.workload import required_flops as planned_flops
from tests import tiny

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))
channel, compare, measure, scaling, workload = (
    importlib.import_module(name) for name in ("channel", "compare", "measure", "scaling", "workload")
)
TOY = workload.Llama(layers=2, hidden=32, ffn=64, heads=2, kv_heads=1, vocabulary=300)
CONTENT = {"loss": 0.69, "logps/chosen": -50.0, "logps/rejected": -60.0, "seconds": 2.0}


def script(name: str, *options: str) -> str:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, FOLDER / name, *options], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def toy_case(tmp_path_factory):
    return compare.make_case("category", TOY, 16, 4, tmp_path_factory.mktemp("case"))


def a_run(name: str, **changes: float):
    steps = [CONTENT | changes for _ in range(5)]
    return compare.Run(name, {}, start_peak=measure.GIB, steps=steps, peak=2 * measure.GIB)


# What the peers are given


def test_text_pairs_are_the_token_ids_that_other_peers_get(tmp_path):
    pairs = workload.make_pairs(np.array([[3, 2, 5], [1, 7, 2]]), TOY.vocabulary)
    path = workload.write_text_pairs(tmp_path / "pairs.jsonl", pairs)
    settings = {"train": [{"format": "plain", "path": str(path)}], "prompt_format": "raw"}
    config = DataConfig.model_validate(settings)
    dataset = tokenize_pairs(load_pairs(config, "train")[0], workload.make_tokenizer(TOY.vocabulary), config)
    for i, pair in enumerate(pairs):
        for name, ids in pair.items():
            assert getattr(dataset, name)[i].tolist() == ids
    assert dataset.lengths.tolist() == [[3, 2, 5], [1, 7, 2]]


def test_a_choice_of_real_pairs_is_made_of_them_and_the_same_each_time():
    chosen = workload.real_lengths("hh", 50)
    assert np.array_equal(chosen, workload.real_lengths("hh", 50))
    everything = workload.real_lengths("hh", 2277)
    assert {tuple(row) for row in chosen} <= {tuple(row) for row in everything}


def test_more_pairs_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"9999 pairs asked for, category has 641; ask for fewer"):
        workload.real_lengths("category", 9999)


def test_steps_beyond_an_epoch_are_an_error():
    args = compare.arguments(None, vocabularies=(300,)).parse_args(["--steps", "5", "--pairs", "16"])
    with pytest.raises(SystemExit, match="--steps 5 must be more than 3 and at most 2"):
        next(compare.each_case(args))


# What is counted


def brute_force_flops(llama, prompt: int, chosen: int, rejected: int) -> int:
    """3 times the forward pass of one pair, token by token."""
    branches = [*[0] * prompt, *[1] * (chosen - 1), *[2] * (rejected - 1)]
    seen = sum(
        k <= q and branches[k] in (0, branches[q])
        for q, k in itertools.product(range(len(branches)), repeat=2)
    )
    width = llama.heads * llama.head_dim
    kv_width = llama.kv_heads * llama.head_dim
    weights = llama.hidden * (2 * width + 2 * kv_width + 3 * llama.ffn)
    of_layer = 2 * weights * len(branches) + 2 * 2 * width * seen
    return 3 * (llama.layers * of_layer + 2 * llama.hidden * llama.vocabulary * (chosen + rejected))


def test_required_flops_are_those_of_a_count_by_token():
    lengths = [[3, 2, 5], [4, 1, 6]]
    expected = sum(brute_force_flops(TOY, *pair) for pair in lengths)
    assert measure.required_flops(TOY, np.array(lengths)) == expected


def test_adapters_save_the_gradients_of_weights_and_add_their_own_products():
    lengths = np.array([[3, 2, 5]])
    full, none = measure.required_flops(TOY, lengths), measure.required_flops(TOY, lengths, rank=1)
    more = measure.required_flops(TOY, lengths, rank=3) - none
    assert none < full
    assert more == 2 * 3 * 2 * TOY.linear_widths * (3 + 1 + 4)


LINEAR = ["query", "key", "value", "out", "gate", "up", "down"]


@pytest.mark.parametrize("rank", [0, 3])
def test_plans_count_the_same_flops(rank, tmp_path):
    model = {"lora": {"rank": rank, "targets": LINEAR}} if rank else {}
    config = parse_config(tiny.run_settings(tmp_path, model=model, train={"batch_size": 4}), "test")
    architecture = decoder_config_from_hf(TOY.hf_config())
    planned = assumed_workload(config, architecture, prompt=7, response=5, groups=1, multiple=32)
    required = measure.required_flops(TOY, np.array([[7, 5, 5]] * 4), rank=rank)
    assert planned_flops(config, architecture, planned) == required


def test_growth_of_a_power_is_its_exponent():
    assert scaling.exponent([1, 2, 4], [3.0, 3.0 * 2**1.5, 3.0 * 4**1.5]) == pytest.approx(1.5)


# How runs are compared


def test_first_steps_agree_within_rounding():
    ours = a_run("jaxalign")
    assert compare.agree(ours, a_run("other", loss=0.69001))
    assert not compare.agree(ours, a_run("other", loss=0.6902))
    assert not compare.agree(ours, a_run("other", **{"logps/rejected": -60.01}))


def test_lines_say_how_much_faster_and_whether_figures_agree(toy_case):
    ours, theirs = a_run("jaxalign"), a_run("other", seconds=6.0, loss=0.8)
    line = compare.ratio_line(ours, theirs)
    assert "against other: 3.00 x its pairs/s, 1.00 x its memory" in line
    assert "losses 0.690000 and 0.800000" in line
    assert "(DISAGREE)" in line
    order = [[0, 1, 2, 3]] * 4
    flops, tokens, pairs = compare.work(toy_case, order, 4)
    peak = measure.Peak(flops, "a peak at which the two timed steps take a second")
    figures = compare.run_line(ours, toy_case, order, peak).split()
    assert figures[:2] == ["jaxalign", "2.00"]
    assert figures[5:] == [f"{pairs / 4:.2f}", f"{tokens / 4:.0f}", "25%", "4.00", "2.00", "1.00"]


def test_memory_that_is_short_is_met_with_more_micro_batches():
    tried = []

    def start(parts: int) -> list[str]:
        tried.append(parts)
        if parts < 4:
            raise channel.PeerError("peer ended with exit status 1, having said:\nnot enough memory: 5 GB")
        return ["done"]

    assert compare.with_less_memory(start) == (["done"], 4)
    assert tried == [1, 2, 4]


def test_a_peer_that_fails_says_why(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(channel.PeerError, match="toy ended with exit status 1, having said:\nno such model"):
        channel.Peer("toy", command, env={}, log=tmp_path / "log")


def test_other_errors_of_a_peer_are_not_taken_for_lack_of_memory():
    def start(parts: int) -> list[str]:
        raise channel.PeerError("peer ended with exit status 1, having said:\nno such model")

    with pytest.raises(channel.PeerError, match="no such model"):
        compare.with_less_memory(start)


# Real runs


@pytest.mark.slow
def test_jaxalign_makes_its_steps_one_by_one(toy_case):
    with compare.start_jaxalign(toy_case, compare.jaxalign_settings(toy_case)) as peer:
        (run,) = compare.alternate([peer], num_steps=3)
    assert sorted(i for step in peer.started["order"] for i in step) == list(range(16))
    assert 0 <= peer.started["padding"] < 0.5
    assert run.steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert run.steps[2]["loss"] != run.steps[0]["loss"]
    assert min(run.peak, run.start_peak) > 2**26


def test_a_point_of_a_series_is_measured():
    point = dataclasses.asdict(scaling.TINY)
    found = scaling.in_new_process({"point": point, "repeats": 2})
    assert len(found["seconds"]) == 2
    assert found["temporaries"] > 0


@pytest.mark.slow
def test_generation_beside_transformers_runs_and_agrees():
    output = script("generate.py", "--tiny", "--batch-sizes", "3", "--new-tokens", "5", "--rounds", "1")
    assert "the same tokens in 3 of 3 rows" in output


def test_without_a_gpu_that_is_said():
    assert (
        "no GPU is present: nothing was measured" in script("gpu.py")
        or importlib.import_module("gpu").gpu_name()
    )


@pytest.mark.slow
def test_collectives_are_counted():
    lines = script("scaling.py", "--tiny", "--axes", "devices").splitlines()
    counts = {line.split()[0]: line for line in lines if "=2 " in line and " x, " in line}
    assert set(counts) == {"data=2", "fsdp=2", "tensor=2"}
    assert all("all-reduce" in line for line in counts.values())
    assert "all-gather" in counts["fsdp=2"]


@pytest.mark.slow
def test_peer_trl_runs():
    output = script("peer_trl.py", "--tiny", "--pairs", "16", "--batch-size", "4", "--steps", "4",
                    "--vocabularies", "300", "--cases", "category", "--trl", "1.16.0")  # fmt: skip
    assert "(agree)" in output
    assert "the faster TRL is 1.16.0" in output


@pytest.mark.slow
def test_peer_jax_runs():
    if not importlib.import_module("peer_jax").FOLDER.exists():
        pytest.skip("needs the environment that benchmarks/peer_jax.py makes when it is run by itself")
    output = script("peer_jax.py", "--tiny", "--pairs", "16", "--batch-size", "4", "--steps", "4",
                    "--vocabularies", "300", "--cases", "category", "--reference", "each-step")  # fmt: skip
    assert "(agree)" in output


@pytest.mark.slow
def test_gpu_runs_as_a_trial_on_the_cpu():
    output = script("gpu.py", "--device", "cpu", "--models", "toy", "--cases", "category", "--batch-size", "4",
                    "--pairs", "16", "--steps", "4", "--ranks", "4", "--trl", "none")  # fmt: skip
    assert "jaxalign packed" in output
    assert "jaxalign padded" in output
