"""manifest.json: everything that a run was made of, and the check that a resumed run is still the same."""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

import jaxalign
from jaxalign.config import Config, ConfigError
from jaxalign.hf.checkpoint import Checkpoint
from jaxalign.parallel import agree_on_text, is_main_process

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
SPEED_OF_JUDGES = ("batch_size", "url", "timeout", "max_attempts", "concurrency", "cache")
# A resumed run may differ in these; anything else would make it another run.
FREE_ON_RESUME = (
    "mesh",
    "evaluation.every_steps",
    "evaluation.batch_size",
    "checkpoint",
    "logging",
    "reference.cache_dir",
    "reference.file",
    "model.path",
    "model.tokenizer",
    *(
        f"{section}.{option}"  # where and how fast judges work, not what they say
        for section in ("adaptive.probe", "selection")
        for option in ("answers.batch_size", *(f"judge.{name}" for name in SPEED_OF_JUDGES))
    ),
)


def git_revision() -> str | None:
    """Commit of the source tree, with "+changes" where files differ; None outside a git checkout."""
    folder = Path(jaxalign.__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def model_fingerprint(checkpoint: Checkpoint) -> str:
    """Hash of a model's weights and configuration, on every process.

    One process reads the files; for the others it would be reading the same for nothing.
    """
    return agree_on_text(checkpoint.fingerprint() if is_main_process() else "")


def run_fingerprint(manifest: dict[str, Any], step: int | None) -> str:
    """Hash of how a run was started and of a step, which together decide its parameters."""
    started = {key: value for key, value in manifest.items() if key != "resumed"}
    return hashlib.sha256(json.dumps([started, step], sort_keys=True).encode()).hexdigest()


def describe_config(config: Config) -> dict[str, Any]:
    """The configuration as plain values; models by absolute path, so that a run is found from anywhere."""
    plain = config.model_dump(mode="json")
    for name in ("path", "tokenizer"):
        if plain["model"][name] is not None:
            plain["model"][name] = str(Path(plain["model"][name]).resolve())
    return plain


def make_manifest(config: Config, fingerprints: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a run."""
    return {
        "jaxalign": jaxalign.__version__,
        "git_revision": git_revision(),
        "config": describe_config(config),
        "fingerprints": fingerprints,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "devices": {
            "count": jax.device_count(),
            "kind": jax.devices()[0].device_kind,
            "processes": jax.process_count(),
        },
    }


def with_resumption(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the start, with what a resumption ran on added to the list of them."""
    resumed = {name: value for name, value in new.items() if name != "fingerprints"}
    return {**old, "resumed": [*old.get("resumed", []), resumed]}


def read_manifest(workdir: Path) -> dict[str, Any] | None:
    """The manifest of the run in `workdir`, None where there is none."""
    path = workdir / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); restore it, or train in another workdir") from error
    missing = [key for key in ("config", "fingerprints") if key not in manifest]
    if missing:
        raise ConfigError(f"{path} lacks {', '.join(missing)}: it is not the manifest of a run")
    return manifest


def check_same(what: str, old: dict[str, Any], new: dict[str, Any], workdir: Path) -> None:
    """Raise ConfigError naming each setting, or with `what` each such thing, that a resumed run changes."""
    before, after = _flatten(old), _flatten(new)
    differing = [
        f"{what}{key}: started with {before.get(key)}, now {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _free(key)
    ]
    if differing:
        raise ConfigError(
            f"{workdir} holds a run that was started otherwise; set these back, or use another --workdir\n  "
            + "\n  ".join(differing)
        )


def _free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE_ON_RESUME)


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}" if prefix else key)
    return flat
