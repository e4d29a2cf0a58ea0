"""The command line: arguments in, calls of `jaxalign.run`, an exit status out. Heavy imports wait for their command."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from jaxalign import __version__
from jaxalign.errors import JaxalignError

if TYPE_CHECKING:
    from jaxalign.config import Config

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Look at data, and make the sample data.")
app.add_typer(data_app, name="data")

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
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _is_users(error: Exception) -> bool:
    """True for errors that jaxalign raises on purpose, and for files that cannot be read or written."""
    return isinstance(error, JaxalignError | OSError)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    """Safety preference alignment of language models in JAX."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
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
    settings = _load(config, overrides)
    if print_config:
        from jaxalign.config import dump_config

        print(dump_config(settings), end="")
        return
    if dry_run:
        from jaxalign.run.dry_run import dry_run as check

        check(settings, workdir or Path("runs") / config.stem, Console())
        return
    workdir = workdir or Path("runs") / config.stem
    main_process = _join(distributed)
    from jaxalign.run.summary import print_training
    from jaxalign.run.train import train as run_training

    result = run_training(settings, workdir)
    if main_process:
        print_training(result, workdir, Console())


@app.command()
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
        _load(config, overrides),
        topology,
        Console(),
        architecture=architecture,
        lengths=PairLengths(prompt_tokens, response_tokens),
        searching=search,
        as_json=as_json,
    )
    raise typer.Exit(0 if fits else 1)


@app.command()
def evaluate(
    model: Annotated[
        Path | None, typer.Argument(metavar="RUN_OR_HF_DIR", help="a workdir, or a Hugging Face model")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="a configuration whose data section is read; default: that of the run")
    ] = None,
    split: Annotated[
        Literal["train", "heldout"] | None, typer.Option(help="which pairs; default: heldout")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="reference model, needed for a Hugging Face model")
    ] = None,
    step: Step = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="pairs at a time; default: 16")] = None,
    safety: Annotated[
        Path | None, typer.Option(help="YAML file: have answers to prompts judged, see configs/evaluation/")
    ] = None,
    overrides: Overrides = None,
    baseline: Annotated[
        Path | None, typer.Option(help="answers-*.json of another model, to be compared with")
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="LABELLED", help="how often the judge of --safety is right on a file"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON to write; with --safety a folder, default: RUN/evaluation")
    ] = None,
    distributed: Distributed = False,
) -> None:
    """Figures per harm category: of held-out preferences, or with --safety of judged answers to prompts."""
    preference = {"--data": data, "--split": split, "--reference": reference, "--batch-size": batch_size}
    answers = {"--set": overrides or None, "--baseline": baseline, "--calibrate": calibrate}
    if calibrate is not None:
        _only("--calibrate", **preference, **{"--baseline": baseline, "--step": step, "RUN_OR_HF_DIR": model})
    elif model is None:
        raise _error("RUN_OR_HF_DIR is missing; only --calibrate goes without a model")
    if safety is not None:
        _only("--safety", **preference, **{"--distributed": distributed or None})
        _evaluate_safety(model, safety, overrides, step, baseline, calibrate, output)
        return
    _only("no --safety", **answers)
    assert model is not None
    main_process = _join(distributed)
    from jaxalign.files import write_json
    from jaxalign.run.evaluate import evaluate as run_evaluation
    from jaxalign.run.summary import print_report

    report = run_evaluation(
        model, data, split=split or "heldout", reference=reference, step=step, batch_size=batch_size or 16
    )
    if not main_process:
        return
    if output is not None:
        write_json(output, report.as_dict())
    print_report(report, Console())


def _only(given: str, **others: object) -> None:
    """Raise ConfigError for options that have no effect beside what was given."""
    useless = [name for name, value in others.items() if value is not None]
    if useless:
        raise _error(f"{', '.join(useless)}: no effect with {given}; leave it out")


def _error(message: str) -> Exception:
    from jaxalign.config import ConfigError

    return ConfigError(message)


def _evaluate_safety(
    model: Path | None,
    file: Path,
    overrides: list[str] | None,
    step: Any,
    baseline: Path | None,
    labelled: Path | None,
    output: Path | None,
) -> None:
    from rich.markdown import Markdown

    from jaxalign.config import load_settings
    from jaxalign.evaluation.settings import SafetyConfig
    from jaxalign.run.calibration import print_calibration
    from jaxalign.run.safety import calibrate_judge, evaluate_safety

    config = load_settings(SafetyConfig, file, overrides or [])
    if labelled is not None:
        print_calibration(calibrate_judge(config, labelled, output), Console())
        return
    assert model is not None
    found = evaluate_safety(model, config, name=file.stem, step=step, baseline=baseline, output=output)
    Console().print(Markdown(found.result.markdown()))
    if found.comparison is not None:
        Console().print(Markdown(found.comparison.markdown()))
    Console().print(f"written to {found.folder}", markup=False)


@app.command()
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
    _join(distributed)
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


@app.command()
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
    _join(distributed)
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


@app.command()
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


@app.command()
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


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="workdirs; the others against the first")
    ],
    output: Annotated[Path, typer.Option(help="file to write, replaced if it is there")] = Path(
        "report.html"
    ),
    kind: Annotated[
        Literal["html", "md", "json", "png"] | None,
        typer.Option("--format", help="default: by the suffix of OUTPUT"),
    ] = None,
) -> None:
    """One page about runs: verdict, figures per harm category, differences between runs."""
    from jaxalign.run.report import report as run_report

    run_report(runs, output, kind)
    print(f"report written to {output}")


@data_app.command("check")
def data_check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Counts, unsafe rows, duplicates, lengths, truncation and leaks by category; exit status 1 on errors."""
    from jaxalign.data.check import check_data
    from jaxalign.run.data import load_tokenizer

    settings = _load(config, overrides)
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


@app.command()
def schema() -> None:
    """The JSON schema of configurations, for editors."""
    from jaxalign.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


def _join(distributed: bool) -> bool:
    """Start jax, with the other processes if there are any; True on the process that prints."""
    from jaxalign.parallel import is_main_process, start_processes

    if distributed:
        start_processes()
    if not is_main_process():
        logging.getLogger("jaxalign").setLevel(logging.WARNING)
    return is_main_process()


def _load(config: Path, overrides: list[str] | None) -> "Config":
    from jaxalign.config import load_config

    return load_config(config, overrides or ())
