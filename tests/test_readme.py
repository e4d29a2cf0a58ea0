"""The code and the commands that the README shows."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
from typer.testing import CliRunner

from jaxalign import adaptive, losses
from jaxalign.cli import app

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_loss_example_trains_and_its_margins_grow() -> None:
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "cat_dpo_loss" in block
    )

    def logps_fn(params: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return batch["ref_chosen"] + params["a"], batch["ref_rejected"] + params["b"]

    names = {"logps_fn": logps_fn}
    exec(code, names)
    one = jnp.ones(4)
    batch = {
        "ref_chosen": -20 * one,
        "ref_rejected": -24 * one,
        "categories": jnp.array([[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]]),
        "chosen_unsafe": 0 * one,
        "rejected_unsafe": one,
    }
    # The rejected response has gained on the chosen one: every pair is a violation.
    params = {"a": jnp.array(-5.0), "b": jnp.array(5.0)}
    rule = names["rule"]
    margins, losses = rule.init(), []
    for _ in range(3):
        params, margins, loss = names["step"](params, margins, batch)
        losses.append(float(loss))
    assert losses[0] > float(jnp.log(2.0))
    assert params["a"] > -5.0
    assert params["b"] < 5.0
    assert (margins.margin[:2] > 0).all()
    assert margins.margin[2] == 0
    assert len(code.splitlines()) <= 26


def test_every_command_of_the_table_exists() -> None:
    commands = re.findall(r"^\| `jaxalign ([a-z]+(?: (?:check|sample))?)", README, re.MULTILINE)
    assert len(set(commands)) == 11
    for command in set(commands):
        shown = CliRunner().invoke(app, [*command.split(), "--help"])
        assert shown.exit_code == 0, shown.output
    options = set(re.findall(r"(--[a-z-]+)", "".join(re.findall(r"^\| `jaxalign .*", README, re.MULTILINE))))
    assert options
    helps = "".join(
        CliRunner().invoke(app, [*c.split(), "--help"], terminal_width=200).output for c in set(commands)
    )
    assert options <= set(re.findall(r"--[a-z-]+", helps))


def test_every_file_that_is_named_exists() -> None:
    root = Path(__file__).resolve().parents[1]
    for path in re.findall(r"(?:launch|docs)/[a-z_/]+\.(?:sh|md|sbatch)", README):
        assert (root / path).exists(), path


def test_every_loss_and_every_rule_is_listed() -> None:
    table = README.split("| family | losses")[1].split("\n\n")[0]
    listed = re.findall(r"`(\w+)`", "\n".join(table.splitlines()[2:]))
    assert sorted(f"{name}_loss" for name in listed) == sorted(
        name for name in losses.__all__ if name.endswith("_loss")
    )
    assert {name for name in adaptive.__all__ if name.endswith("_rule")} <= set(
        re.findall(r"`(\w+_rule)`", README)
    )
