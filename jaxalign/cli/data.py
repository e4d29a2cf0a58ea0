"""Commands about data: check, sample."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jaxalign.cli.options import ConfigPath, Overrides, load

data_app = typer.Typer(no_args_is_help=True, help="Look at data, and make the sample data.")


@data_app.command("check")
def data_check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Counts, unsafe rows, duplicates, lengths, truncation and leaks by category; exit status 1 on errors."""
    from jaxalign.data.check import check_data
    from jaxalign.run.data import load_tokenizer

    settings = load(config, overrides)
    check = check_data(settings.data, load_tokenizer(settings))
    check.render(Console())
    raise typer.Exit(0 if check.ok else 1)


@data_app.command("sample")
def data_sample(
    output: Annotated[Path, typer.Argument(metavar="DIR")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write the sample preference set (abstract, in the PKU-SafeRLHF schema)."""
    from jaxalign.data.sample import write_sample

    for path in write_sample(output, seed=seed):
        print(path)
