"""Commands that take a model: generate, export, merge, verify."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from jaxalign.cli.options import Distributed, Step, join


def generate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="a workdir, or a Hugging Face or .gguf model")
    ],
    prompts: Annotated[
        str, typer.Option(metavar="FILE|-", help="jsonl, csv or parquet with `prompt`; or lines of text")
    ],
    output: Annotated[Path | None, typer.Option(help="jsonl to write; default: standard output")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="of one answer")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest token")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="draw among so many likeliest tokens")] = None,
    top_p: Annotated[float | None, typer.Option(help="among the fewest that reach this probability")] = None,
    samples: Annotated[int, typer.Option(min=1, help="answers to each prompt")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="of the draws; default: 0")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="answers at a time")] = 16,
    system_prompt: Annotated[str | None, typer.Option(help="for prompts that have none")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="prompts as they stand, no chat template")] = False,
    step: Step = None,
    distributed: Distributed = False,
) -> None:
    """Answer prompts: one line of JSON for each, with its answers and whether they ended by themselves."""
    join(distributed)
    from jaxalign.models.sampling import Sampling
    from jaxalign.run.generate import generate as run_generation

    run_generation(
        model,
        prompts,
        output,
        sampling=Sampling(temperature, top_k, top_p),
        num_samples=samples,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        system_prompt=system_prompt,
        raw=raw,
        step=step,
    )


def export(
    checkpoint: Annotated[Path, typer.Option(metavar="RUN", help="workdir of a run")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Hugging Face directory to write")],
    dtype: Annotated[
        Literal["bf16", "f32"] | None, typer.Option(help="of the merged model; default: bf16")
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="the adapter alone, float32, in PEFT format")
    ] = False,
    base_model: Annotated[str | None, typer.Option(help="what an adapter is to be loaded onto")] = None,
    max_shard_size: Annotated[str | None, typer.Option(help="largest weight file; default: 5GB")] = None,
    step: Step = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier export in DIR")] = False,
    distributed: Distributed = False,
) -> None:
    """Write the trained model in Hugging Face format."""
    join(distributed)
    from jaxalign.run.export import export as run_export

    run_export(
        checkpoint,
        output,
        dtype=dtype,
        adapter=adapter,
        base_model=base_model,
        max_shard_size=max_shard_size,
        step=step,
        overwrite=overwrite,
    )
    print(f"exported to {output}")


def merge(
    a: Annotated[Path, typer.Argument(metavar="A", help="a workdir, or a Hugging Face or .gguf model")],
    b: Annotated[Path, typer.Argument(metavar="B", help="another one, of the same base model")],
    weight: Annotated[float, typer.Option(metavar="Q", help="(1 - Q) * A + Q * B is written")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Hugging Face directory to write")],
    dtype: Annotated[Literal["bf16", "f32"], typer.Option(help="of the merged model")] = "bf16",
    step_a: Step = None,
    step_b: Step = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier export in DIR")] = False,
) -> None:
    """Write the weighted mean of two models in Hugging Face format."""
    from jaxalign.run.merge import merge as run_merge

    run_merge(a, b, output, weight=weight, dtype=dtype, step_a=step_a, step_b=step_b, overwrite=overwrite)
    print(f"merged into {output}")


def verify(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_DIR", help="a workdir, or a Hugging Face model")],
    hf_dir: Annotated[Path, typer.Argument(metavar="HF_DIR", help="what transformers + torch read")],
    step: Step = None,
) -> None:
    """Compare our decoder with transformers + torch on the same texts; exit status 1 if they differ."""
    from jaxalign.run.summary import print_verification
    from jaxalign.run.verify import verify as run_verification

    report = run_verification(model, hf_dir, step=step)
    print_verification(report, Console())
    raise typer.Exit(0 if report.passed else 1)
