"""The bounds in pyproject.toml do not contradict each other."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("python", "oldest_flax"), [("3.11", "0.12.8"), ("3.12", "0.12.9"), ("3.13", "0.12.9")]
)
def test_flax_is_one_that_the_newest_allowed_jax_works_with(python, oldest_flax):
    requirements = map(Requirement, PROJECT["dependencies"])
    flax = [r for r in requirements if r.name == "flax" and r.marker.evaluate({"python_version": python})]
    assert [str(requirement.specifier) for requirement in flax] == [f">={oldest_flax}"]


def test_torch_for_cpu_is_there_before_what_would_bring_another():
    makefile = (Path(__file__).resolve().parents[1] / "Makefile").read_text()
    assert 0 < makefile.index("install $(TORCH)") < makefile.index("install -e '.[dev]'")


def test_development_holds_what_the_documentation_needs():
    extras = PROJECT["optional-dependencies"]
    own = next(Requirement(line) for line in extras["dev"] if line.startswith("jaxalign["))
    assert "docs" in own.extras
    assert all(
        Requirement(line).specifier for line in [*extras["docs"], *extras["dev"]] if "jaxalign[" not in line
    )
