"""The command line: arguments in, calls of `jaxalign.run`, an exit status out. Heavy imports wait for their command."""

import logging
import os
import re
import sys
from typing import Annotated

import typer

from jaxalign import __version__
from jaxalign.cli.data import data_app
from jaxalign.cli.evaluation import evaluate, report
from jaxalign.cli.models import export, generate, merge, verify
from jaxalign.cli.training import plan, schema, train
from jaxalign.errors import JaxalignError

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but tab and line feed

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(data_app, name="data")
for command in (train, plan, evaluate, generate, export, merge, verify, report, schema):
    app.command()(command)


def main() -> None:
    """Entry point. Errors that a user can mend are one message and status 2, without a traceback."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is missing is no news
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("jaxalign").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of each checkpoint that is only read
    try:
        app()
    except Exception as error:
        if "JAXALIGN_TRACEBACK" in os.environ or not _is_users(error):
            raise
        print(f"error: {CONTROL.sub(_shown, str(error))}", file=sys.stderr)
        sys.exit(2)


def _shown(control: re.Match[str]) -> str:
    """A control character, which a message may have from a file or from a server, as terminals cannot act on it."""
    return repr(control[0])[1:-1]


def _is_users(error: Exception) -> bool:
    """True for errors that jaxalign raises on purpose, and for files that cannot be read or written."""
    return isinstance(error, JaxalignError | OSError)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    """Safety preference alignment of language models in JAX."""
    if version:
        print(__version__)
        raise typer.Exit
