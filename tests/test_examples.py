"""Each example runs as its own program, with warnings as errors, and prints what it promises."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def output_of(name: str) -> str:
    environment = os.environ | {"PYTHONWARNINGS": "error", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(output: str) -> list[list[float]]:
    """The numbers of every line that is made of numbers alone."""
    lines = (line.split() for line in output.splitlines())
    return [[float(x) for x in line] for line in lines if line and all(map(is_number, line))]


def is_number(word: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", word) is not None


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_says_what_it_shows(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 80
    assert source.startswith('"""')
    imported = set(re.findall(r"^(?:from|import) (jaxalign[\w.]*)", source, re.MULTILINE))
    assert imported == {"jaxalign", "jaxalign.losses"}


def test_every_example_is_run_here():
    names = {"equinox_model", "flax_linen", "flax_nnx", "shard_map_data_parallel", "vmap_settings"}
    assert {path.stem for path in EXAMPLES} == names


@pytest.mark.parametrize("name", ["flax_nnx", "flax_linen", "equinox_model"])
def test_model_learns_and_the_harder_category_gets_the_larger_margin(name):
    if name == "equinox_model" and importlib.util.find_spec("equinox") is None:
        pytest.skip("needs equinox: pip install '.[dev]'")
    rows = rows_of(output_of(name))
    assert [row[0] for row in rows] == list(range(0, 121, 20))
    losses, easy, hard, easy_rate, hard_rate = list(zip(*rows, strict=True))[1:]
    assert losses[0] == pytest.approx(0.693, abs=1e-3)
    assert losses[-1] < 0.05
    assert easy_rate[0] == hard_rate[0] == 1.0
    assert easy_rate[-1] == hard_rate[-1] == 0.0
    assert hard[-1] > easy[-1] + 0.3
    assert hard[-1] < max(hard)  # it relaxes once the model has caught up
    assert easy[-1] < max(easy)


def test_sixteen_settings_at_once_equal_one_alone():
    output = output_of("vmap_settings")
    first, last = re.search(r"at the start ([\d.]+), at the end ([\d.]+)", output).groups()
    assert float(last) < float(first) / 2
    rows = [row for row in rows_of(output) if len(row) == 9]
    easy, hard = rows[:4], rows[4:]
    assert len(hard) == 4
    for of_easy, of_hard in zip(easy, hard, strict=True):
        assert of_easy[0] == of_hard[0]  # the step size
        assert all(h > e for e, h in zip(of_easy[1::2], of_hard[1::2], strict=True))  # the largest margins
    largest = [row[1] for row in easy]
    assert largest == sorted(set(largest))  # a larger step size gives larger margins
    assert float(re.search(r"run alone: (\S+)", output).group(1)) < 1e-4


def test_eight_devices_equal_one():
    output = output_of("shard_map_data_parallel")
    rows = rows_of(output)
    assert "loss on 8 devices" in output
    assert all(row[1] == pytest.approx(row[2], abs=2e-4) for row in rows)
    assert rows[-1][1] < rows[0][1] / 2
    easy, hard = rows[-1][3:]
    assert hard > easy + 0.5
    logits, margins = map(float, re.search(r"logits (\S+), margins (\S+)", output).groups())
    assert logits < 1e-4
    assert margins < 1e-5
