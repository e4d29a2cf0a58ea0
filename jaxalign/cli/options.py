"""Options that several commands share, and what each command does first."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from jaxalign.config import Config

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see configs/")]
Distributed = Annotated[
    bool, typer.Option("--distributed", help="join the other processes of this job first")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=value", help="change one setting; may be repeated")
]


def _step(text: str) -> int | str:
    if text != "best" and not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither the number of a step nor `best`")
    return text if text == "best" else int(text)


Step = Annotated[
    Any,
    typer.Option(
        metavar="N|best",
        parser=_step,
        help="checkpoint of a run: of step N, or the one that its `selection` chose; default: the newest",
    ),
]


def load(config: Path, overrides: list[str] | None) -> "Config":
    """The configuration with its overrides, checked."""
    from jaxalign.config import load_config

    return load_config(config, overrides or ())


def join(distributed: bool) -> bool:
    """Start jax, with the other processes if there are any; True on the process that prints."""
    from jaxalign.parallel import is_main_process, start_processes

    if distributed:
        start_processes()
    if not is_main_process():
        logging.getLogger("jaxalign").setLevel(logging.WARNING)
    return is_main_process()
