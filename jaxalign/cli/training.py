"""Commands that read a configuration: train, plan, schema."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jaxalign.cli.options import ConfigPath, Distributed, Overrides, join, load


def train(
    config: ConfigPath,
    overrides: Overrides = None,
    workdir: Annotated[Path | None, typer.Option(help="default: runs/NAME_OF_CONFIG")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="show every setting and stop")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check configuration, data, mesh and memory, and stop")
    ] = False,
    distributed: Distributed = False,
) -> None:
    """Train, or resume the run in WORKDIR from its newest checkpoint."""
    settings = load(config, overrides)
    if print_config:
        from jaxalign.config import dump_config

        print(dump_config(settings), end="")
        return
    if dry_run:
        from jaxalign.run.dry_run import dry_run as check

        check(settings, workdir or Path("runs") / config.stem, Console())
        return
    workdir = workdir or Path("runs") / config.stem
    main_process = join(distributed)
    from jaxalign.run.summary import print_training
    from jaxalign.run.train import train as run_training

    result = run_training(settings, workdir)
    if main_process:
        print_training(result, workdir, Console())


def plan(
    config: ConfigPath,
    topology: Annotated[
        list[str], typer.Option(metavar="CHIP:SHAPE", help="v5e:8x8, v5p:4x4x4, v6e:4x4; may be repeated")
    ],
    overrides: Overrides = None,
    architecture: Annotated[
        str | None, typer.Option(help="a config.json or a known name such as llama3-8b; default: model.path")
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="of every prompt; default: the most that CONFIG allows")
    ] = None,
    response_tokens: Annotated[
        int | None, typer.Option(min=1, help="of every response; default: the most that CONFIG allows")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="also try other meshes, remat policies and micro-batches")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> None:
    """Compile the train step for TPUs that are not here: memory, work, bounds; exit status 1 if it does not fit."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # TPUs of this machine, if any, stay free
    from jaxalign.run.plan.command import PairLengths
    from jaxalign.run.plan.command import plan as run_plan

    fits = run_plan(
        load(config, overrides),
        topology,
        Console(),
        architecture=architecture,
        lengths=PairLengths(prompt_tokens, response_tokens),
        searching=search,
        as_json=as_json,
    )
    raise typer.Exit(0 if fits else 1)


def schema() -> None:
    """The JSON schema of configurations, for editors."""
    from jaxalign.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))
