"""Commands that measure, and show what was measured: evaluate, report."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from jaxalign.cli.options import Distributed, Overrides, Step, join


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
    homeless = [name for name, value in answers.items() if value is not None]
    if homeless:
        raise _error(f"{', '.join(homeless)}: needs --safety FILE, which names prompts and judge")
    assert model is not None
    _check_file(output)
    main_process = join(distributed)
    from jaxalign.files import write_json
    from jaxalign.run.evaluate import evaluate as run_evaluation
    from jaxalign.run.summary import print_report

    report = run_evaluation(
        model, data, split=split or "heldout", reference=reference, step=step, batch_size=batch_size or 16
    )
    if not main_process:
        return
    print_report(report, Console())
    if output is not None:
        write_json(output, report.as_dict())


def _only(given: str, **others: object) -> None:
    """Raise ConfigError for options that have no effect beside what was given."""
    useless = [name for name, value in others.items() if value is not None]
    if useless:
        raise _error(f"{', '.join(useless)}: no effect with {given}; leave it out")


def _check_file(output: Path | None) -> None:
    """Raise ConfigError, before anything is computed, where a folder is in the place of the file to write."""
    if output is not None and output.is_dir():
        raise _error(
            f"--output {output} is a folder, expected a file; name one, such as {output / 'figures.json'}"
        )


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
    from jaxalign.config import load_settings
    from jaxalign.evaluation.settings import SafetyConfig
    from jaxalign.files import write_json
    from jaxalign.run.calibration import print_calibration
    from jaxalign.run.safety import calibrate_judge, evaluate_safety
    from jaxalign.run.summary import Figures

    config = load_settings(SafetyConfig, file, overrides or [])
    if labelled is not None:
        _check_file(output)
        calibration = calibrate_judge(config, labelled)
        print_calibration(calibration, Console())
        if output is not None:
            write_json(output, calibration.as_dict())
        return
    assert model is not None
    found = evaluate_safety(model, config, name=file.stem, step=step, baseline=baseline, output=output)
    Console().print(Figures(found.result.markdown()))
    if found.comparison is not None:
        Console().print(Figures(found.comparison.markdown()))
    Console().print(f"written to {found.folder}", markup=False)


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
