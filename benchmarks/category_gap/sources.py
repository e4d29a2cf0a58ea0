"""A fingerprint of the code that results come from, so that other code does not go on with them."""

import hashlib
from pathlib import Path

import jaxalign

HERE, PACKAGE = Path(__file__).parent, Path(jaxalign.__file__).parent
PARTS = ("adaptive", "losses", "models", "ops", "training")  # of jaxalign, that a run calls


def code_fingerprint(*modules: str) -> str:
    """A hash of these modules of the study and of the parts of jaxalign that it runs."""
    files = [HERE / f"{name}.py" for name in modules]
    files += sorted(path for part in PARTS for path in (PACKAGE / part).rglob("*.py"))
    found = hashlib.sha256()
    for path in files:
        found.update(path.read_bytes())
    return found.hexdigest()[:12]
