"""The documentation says what the code does: formulas, gradients, values, tables, snippets, and the site builds."""

import contextlib
import inspect
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import adaptive, losses
from tests.latex import evaluate

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LOSSES = sorted(name for name in losses.__all__ if name.endswith("_loss"))
RULES = sorted(name for name in adaptive.__all__ if name.endswith("_rule"))
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted((DOCS / "losses").glob("*.md"))}
SECTIONS = {
    found[1]: found[2]
    for text in TEXTS.values()
    for found in re.finditer(r"^## `(\w+_loss)`(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
}

SYMBOLS = {  # how the pages write the arguments of the losses
    "policy_chosen_logps": "p_w", "policy_rejected_logps": "p_l", "policy_logps": "p",
    "reference_chosen_logps": "r_w", "reference_rejected_logps": "r_l", "reference_logps": "r",
    "chosen_length": "n_w", "rejected_length": "n_l", "length": "n",
    "chosen_unsafe": "u_w", "rejected_unsafe": "u_l", "chosen_weight": "w_w", "rejected_weight": "w_l",
    "chosen_score": "s_w", "rejected_score": "s_l", "chosen_margin_reward": "m_w", "rejected_margin_reward": "m_l",
    "margin": "m", "reward_margin": "m", "group_weight": "q", "keep": "k", "kl": "z", "scale": "g",
    "weight": r"\omega", "margin_weight": r"\omega_m", "reward_shift": r"\delta", "delta": r"\delta",
    "beta": r"\beta", "alpha": r"\alpha", "gamma": r"\gamma", "lam": r"\lambda", "label_smoothing": r"\epsilon",
    "temperature": r"\tau", "tau": r"\tau", "minimum": r"c_{\min}", "maximum": r"c_{\max}",
    "desirable": "t", "desirable_weight": r"\lambda_+", "undesirable_weight": r"\lambda_-",
}  # fmt: skip
SCALARS = {
    "beta": 0.3, "alpha": 0.25, "gamma": 0.5, "lam": 0.4, "label_smoothing": 0.1, "temperature": 0.5, "delta": 1.5,
    "kl": 0.2, "reward_shift": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7, "tau": 2.0, "minimum": 0.5,
    "maximum": 2.0, "weight": 0.6, "margin_weight": 0.4, "scale": 1.5,
}  # fmt: skip
FIXED = {
    "policy_chosen_logps": -20.0, "policy_rejected_logps": -24.0,
    "reference_chosen_logps": -21.0, "reference_rejected_logps": -22.5,
    "chosen_length": 10.0, "rejected_length": 8.0, "chosen_unsafe": 0.0, "rejected_unsafe": 0.0, "beta": 0.1,
}  # fmt: skip
ROWS = {"policy_logps": "policy_{}_logps", "reference_logps": "reference_{}_logps", "length": "{}_length"}


def parameters(loss: str) -> tuple[list[str], list[str]]:
    """Names of the array arguments and of the scalars of a loss."""
    found = inspect.signature(getattr(losses, loss)).parameters.values()
    arrays = [p.name for p in found if p.kind is p.POSITIONAL_OR_KEYWORD]
    return arrays, [p.name for p in found if p.kind is p.KEYWORD_ONLY]


def random_arrays(names: list[str], num_pairs: int = 16) -> dict[str, np.ndarray]:
    """Float64 arrays for the arguments of a loss, such that both sides of every condition occur."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name in names:
        if name.endswith("logps"):
            arrays[name] = rng.normal(-20.0, 3.0, num_pairs)
        elif name.endswith("length"):
            arrays[name] = rng.integers(5, 20, num_pairs).astype(np.float64)
        elif name.endswith("unsafe") or name in ("desirable", "keep"):
            arrays[name] = np.arange(num_pairs) // (2 if name == "rejected_unsafe" else 1) % 2.0
        elif name == "reward_margin":
            arrays[name] = rng.uniform(-4.0, 4.0, num_pairs)
        else:  # a chosen response has the larger score
            arrays[name] = rng.uniform(0.0, 1.0, num_pairs) + (name == "chosen_score")
    return arrays


def derived_symbols(known: dict[str, Any]) -> dict[str, Any]:
    """What the pages abbreviate: log-ratios, averages, signs and, at the batch level, values of the same rank."""
    symbols = {"e": np.float64(np.e)}
    for branch in ("_w", "_l", ""):
        if "r" + branch in known:
            symbols["D" + branch] = known["p" + branch] - known["r" + branch]
        if "n" + branch in known:
            symbols["a" + branch] = known["p" + branch] / known["n" + branch]
    if "D_w" in symbols:
        symbols["h"] = symbols["D_w"] - symbols["D_l"]
        symbols[r"\rho"] = of_same_rank(known["p_w"] - known["p_l"], known["r_w"] - known["r_l"])
        symbols["D_r"] = of_same_rank(symbols["D_w"], symbols["D_l"])
    if "t" in known:
        symbols["t"] = 2 * known["t"] - 1
    if r"\lambda_+" in known:
        symbols[r"\lambda"] = np.where(known["t"] == 1, known[r"\lambda_+"], known[r"\lambda_-"])
    return symbols


def of_same_rank(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.sort(right)[np.argsort(np.argsort(left))]


@pytest.mark.parametrize("loss", LOSSES)
def test_documented_formula_and_gradient_are_what_jax_computes(loss):
    names, options = parameters(loss)
    arrays = random_arrays(names)
    scalars = {name: SCALARS[name] for name in options}
    known = {SYMBOLS[name]: value for name, value in (arrays | scalars).items()}
    block = re.search(r"\$\$(.*?)\$\$", SECTIONS[loss], re.DOTALL)
    assert block, f"{loss} has no formula"
    printed = evaluate(block[1], known | derived_symbols(known))
    with jax.enable_x64(True):
        value, pullback = jax.vjp(
            lambda *x: getattr(losses, loss)(*x, **scalars), *map(jnp.asarray, arrays.values())
        )
        gradients = dict(zip(names, pullback(jnp.ones_like(value)), strict=True))
    np.testing.assert_allclose(value, printed["L"], rtol=1e-9, atol=1e-12)
    row = re.search(rf"^\| `{loss.removesuffix('_loss')}` \| \$(.*?)\$", TEXTS["index.md"], re.MULTILINE)
    assert row, f"{loss} has no formula in the table of all losses"
    in_table = evaluate(f"L = {row[1]}", printed)["L"]
    np.testing.assert_allclose(value, in_table, rtol=1e-9, atol=1e-12, err_msg="table of all losses")
    for name, gradient in gradients.items():
        if name.startswith("reference"):
            continue  # a model that is never trained
        symbol = SYMBOLS[name]
        if name == "policy_rejected_logps" and "d p_r" in printed:  # that of the pair of the same rank
            symbol, gradient = "p_r", of_matched_pair(gradient, known)
        expected = printed.pop(f"d {symbol}", np.zeros_like(gradient))
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12, err_msg=name)
    assert [name for name in printed if name.startswith("d ")] == []


def of_matched_pair(gradient: jax.Array, known: dict[str, Any]) -> np.ndarray:
    rank = np.argsort(np.argsort(known["p_w"] - known["r_w"]))
    return np.asarray(gradient)[np.argsort(known["p_l"] - known["r_l"])][rank]


def fixed_cases() -> list[tuple[str, str, float]]:
    rows = re.compile(r"^\| `(\w+_loss)` \|(?: `(.*?)`)? \| (\S+) \|$", re.MULTILINE)
    return [
        (name, options, float(value))
        for text in TEXTS.values()
        for name, options, value in rows.findall(text)
    ]


@pytest.mark.parametrize(("loss", "options", "value"), fixed_cases())
def test_documented_value_of_the_fixed_case_is_computed(loss, options, value):
    given = FIXED | eval(f"dict({options})")
    branch = "chosen" if given.get("desirable", 1) else "rejected"
    given |= {name: given[pattern.format(branch)] for name, pattern in ROWS.items()}
    arrays, scalars = parameters(loss)
    result = getattr(losses, loss)(
        *(jnp.array([given[name]]) for name in arrays),
        **{name: given[name] for name in scalars if name in given},
    )
    np.testing.assert_allclose(result, [value], atol=6e-7)


def test_every_loss_has_a_section_a_row_and_a_value():
    rows = re.findall(r"^\| `(\w+)` \|", TEXTS["index.md"].split("{ #all }")[1], re.MULTILINE)
    assert sorted(f"{name}_loss" for name in rows) == LOSSES
    assert sorted(SECTIONS) == LOSSES
    assert {name for name, _, _ in fixed_cases()} == set(LOSSES)


@pytest.mark.parametrize("loss", LOSSES)
def test_section_says_when_names_its_source_and_shows_its_options(loss):
    section = SECTIONS[loss]
    assert "**When.**" in section
    source = re.search(r"^Source: (.*?)\n\n|^Source: (.*)", section + "\n\n", re.MULTILINE | re.DOTALL)
    assert source, f"{loss} names no source"
    assert re.search(r"arXiv \d{4}\.\d{5}", source[0]), source[0]
    if loss in ("cat_dpo_loss", "b_dpo_loss", "cat_b_dpo_loss"):
        said = " ".join(source[0].split())
        assert "reconstructed from the published abstract; not checked against the authors' code" in said
    assert f"<!-- options: {loss.removesuffix('_loss')} -->" in section
    assert f"{{ #{loss.removesuffix('_loss')} }}" in section


def test_every_rule_has_a_row_and_a_section():
    text = (DOCS / "adaptive.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[`(\w+_rule)`\]", text, re.MULTILINE)) == RULES
    assert sorted(re.findall(r"^## `(\w+_rule)`", text, re.MULTILINE)) == RULES


@pytest.mark.parametrize(
    ("formula", "error"),
    [("L = \\sqrt x", "unknown symbol"), ("L = x)", "cannot read on"), ("L = x?", "cannot read '\\?'")],
)
def test_formula_that_is_not_understood_is_refused(formula, error):
    with pytest.raises(ValueError, match=error):
        evaluate(formula, {"x": np.float64(1)})


def pages_with_python() -> list[Path]:
    return [path for path in sorted(DOCS.rglob("*.md")) if "```python" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", pages_with_python(), ids=lambda path: path.name)
def test_python_of_a_page_runs_and_prints_what_is_shown(page):
    blocks = re.findall(
        r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", page.read_text(encoding="utf-8"), re.DOTALL
    )
    names: dict[str, Any] = {}
    for code, shown in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert printed.getvalue() == shown


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The built site; every warning, such as a link to nowhere, is an error."""
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_site_loads_nothing_from_a_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=\"(https?:)?//", page.read_text("utf-8")
        )
        assert not loaded, page


def test_every_equation_is_mathml(site):
    for source in [*DOCS.rglob("*.md")]:
        page = (site / source.relative_to(DOCS)).with_suffix(".html").read_text("utf-8")
        assert "arithmatex" not in page
        assert page.count('<math display="block"') == source.read_text("utf-8").count("$$") // 2
        if source.parent.name == "losses":
            assert "<math>" in page


def test_every_public_name_is_on_its_api_page(site):
    for module in (losses, adaptive):
        page = (site / "api" / f"{module.__name__.split('.')[-1]}.html").read_text("utf-8")
        shown = set(re.findall(rf'id="{module.__name__}\.(?:\w+\.)?(\w+)"', page))
        assert set(module.__all__) - shown == set()


def test_options_of_every_loss_are_shown(site):
    recipes = (site / "recipes.html").read_text("utf-8")
    for name in LOSSES:
        assert f"<code>{name.removesuffix('_loss')}</code>" in recipes
    page = (site / "losses" / "label_noise.html").read_text("utf-8")
    assert "above 0 and below 0.5" in page
    assert "strength of the KL penalty" in page


def test_public_symbol_without_docstring_fails_the_check():
    source = '"""A module."""\n\n\ndef new_loss(x: float) -> float:\n    return x\n'
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename", "jaxalign/losses/new.py", "-"]
    checked = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True)
    assert checked.returncode == 1
    assert "D103" in checked.stdout
