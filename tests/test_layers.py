"""The layers of the package: who may import whom, and that the pure part needs jax alone."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxalign

PACKAGE = Path(jaxalign.__file__).parent
LAYERS = {
    "arrays": 0,
    "batch": 0,
    "errors": 0,
    "files": 0,
    "markdown": 0,
    "progress": 0,
    "refusal_limits": 0,
    "settings": 0,
    "losses": 1,
    "adaptive": 1,
    "ops": 1,
    "models": 2,
    "parallel": 2,
    "data": 2,
    "training": 3,
    "hf": 3,
    "evaluation": 4,
    "report": 4,
    "config": 5,
    "run": 6,
    "cli": 7,
    "__main__": 8,
}
FILES = sorted(PACKAGE.rglob("*.py"))
PURE = ("arrays", "losses", "adaptive")
FORBIDDEN = ["flax", "optax", "orbax", "transformers", "datasets", "pydantic", "chex"]


def part_of(module: str) -> str:
    """First component below the package: 'losses' of 'jaxalign.losses.dpo', '' of 'jaxalign' itself."""
    return module.removeprefix("jaxalign").lstrip(".").split(".")[0]


def module_name(path: Path) -> str:
    """Dotted name; a package keeps its `__init__`, so that a relative import drops the right components."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def imported_modules(source: str, module: str) -> list[tuple[int, str]]:
    """Line and absolute name of everything that the source imports, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def violations(source: str, module: str) -> list[str]:
    """Imports of the source that go up, or sideways into another part of the same layer."""
    own = part_of(module)
    parts = [(line, part_of(name)) for line, name in imported_modules(source, module) if is_ours(name)]
    return [
        f"{module}:{line} (layer {LAYERS[own]}) imports {part} (layer {LAYERS[part]})"
        for line, part in parts
        if part in LAYERS and part != own and LAYERS[part] >= LAYERS[own]
    ]


def is_ours(name: str) -> bool:
    return name == "jaxalign" or name.startswith("jaxalign.")


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down_the_layers(path):
    module = module_name(path)
    if module == "jaxalign.__init__":
        assert not [name for _, name in imported_modules(path.read_text(), module) if is_ours(name)]
        return
    assert part_of(module) in LAYERS, f"{module} has no layer; add it to LAYERS"
    assert violations(path.read_text(), module) == []


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from jaxalign.training import step", "jaxalign.losses.dpo"),
        ("import jaxalign.adaptive.margin", "jaxalign.losses.dpo"),
        ("from jaxalign import adaptive, losses", "jaxalign.ops.attention"),
        ("def f():\n    from ..hf import read", "jaxalign.models.decoder"),
    ],
)
def test_an_import_upwards_or_sideways_is_found(source, module):
    assert violations(source, module)


@pytest.mark.parametrize(
    "path", [path for path in FILES if part_of(module_name(path)) in PURE], ids=module_name
)
def test_losses_and_adaptive_import_jax_alone(path):
    roots = {name.split(".")[0] for _, name in imported_modules(path.read_text(), module_name(path))}
    assert roots - set(sys.stdlib_module_names) <= {"jax", "jaxalign"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_module_that_is_named_in_a_text_exists(path):
    named = set(re.findall(r"\b\w+\.py\b", path.read_text()))
    assert named <= {file.name for file in FILES}


def test_importing_losses_and_adaptive_loads_no_other_framework():
    code = "import sys, jaxalign.losses, jaxalign.adaptive; print(*{m.split('.')[0] for m in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert {"jax", "jaxalign"} <= loaded
    assert loaded.isdisjoint(FORBIDDEN)
