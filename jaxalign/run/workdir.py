"""The workdir of a run: one trainer at a time, and one run from its start to its end."""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxalign import files
from jaxalign.config import Config, ConfigError
from jaxalign.run.manifest import check_same, describe_config, read_manifest

log = logging.getLogger(__name__)


def run_to_resume(config: Config, workdir: Path) -> dict[str, Any] | None:
    """The manifest of the run in `workdir` that this configuration goes on with, None to start afresh.

    Raises ConfigError where the directory cannot be used, or holds checkpoints of a run with other settings.
    """
    if re.match(r"[a-z0-9]+:/", str(workdir)):
        raise ConfigError(
            f"workdir {workdir} is a URL; mount the bucket (such as with gcsfuse) and give its path"
        )
    if set("[]") & set(str(workdir.resolve())):  # Orbax writes such paths and cannot read them
        raise ConfigError(f"workdir {workdir}: checkpoints cannot be read from a path with [ or ]; rename it")
    for folder in (workdir, *workdir.resolve().parents):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"workdir {workdir}: {folder} is a file; give a directory")
    manifest = read_manifest(workdir)
    checkpoints = workdir / "checkpoints"
    if not checkpoints.is_dir() or not any(path.name.isdigit() for path in checkpoints.iterdir()):
        if manifest is not None:
            log.info("%s has no checkpoint yet: starting afresh", workdir)
        return None  # nothing was saved, so nothing binds the next run
    if manifest is None:
        raise ConfigError(f"{workdir} has checkpoints but no manifest.json; use another --workdir")
    check_same("", manifest["config"], describe_config(config), workdir)
    return manifest


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Make the directory and keep other trainers out of it. Raises ConfigError if one is at work there."""
    workdir.mkdir(parents=True, exist_ok=True)
    busy = ConfigError(f"another process trains in {workdir}; wait for it, stop it, or use another --workdir")
    with files.locked(workdir / ".lock", busy=busy):
        yield
