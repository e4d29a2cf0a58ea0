"""`jaxalign export`: a run's model in Hugging Face format, with a card that says how it was made."""

from pathlib import Path
from typing import Any, Literal

from jaxalign.config import Config, ConfigError
from jaxalign.hf.card import model_card
from jaxalign.hf.write import export_adapter, export_model
from jaxalign.run.data import load_tokenizer
from jaxalign.run.load import LoadedModel, WhichStep, is_run, load_model
from jaxalign.run.train import read_report

CARD_COLUMNS = {
    "pairs": "pairs",
    "reward accuracy": "accuracy",
    "reward gap": "reward_gap",
    "pairs below threshold": "violation_rate",
}

EXPLANATION = (
    "They compare given pairs, not generated answers. Reward gap: {beta} * (log-ratio of chosen - of rejected) "
    "against the base model; reward accuracy: share of pairs where it is positive, ties counting one half; pairs below "
    "threshold: share of pairs where it is below {threshold}."
)


def export(
    workdir: Path,
    output: Path,
    *,
    dtype: Literal["bf16", "f32"] | None = None,
    adapter: bool = False,
    base_model: str | None = None,
    max_shard_size: str | None = None,
    step: WhichStep = None,
    overwrite: bool = False,
) -> None:
    """Write the merged model, or with `adapter` the adapter alone, to be loaded onto `base_model`.

    Raises ConfigError for what cannot be written.
    """
    if not is_run(workdir):
        raise ConfigError(f"{workdir} is not the workdir of a run: it has no manifest.json")
    if base_model is not None and not adapter:
        raise ConfigError("--base-model has an effect with --adapter only; leave it out")
    if adapter and (dtype is not None or max_shard_size is not None):
        raise ConfigError("--dtype and --max-shard-size have no effect with --adapter; leave them out")
    model = load_model(workdir, step=step, with_base=not adapter)
    assert model.run is not None  # a run was loaded
    texts = {"tokenizer": load_tokenizer(model.run), "model_card": _card(model, model.run, workdir, adapter)}
    if adapter:
        if model.run.model.lora is None:
            raise ConfigError(f"{workdir} trained all parameters, there is no adapter; leave out --adapter")
        if base_model is None and model.run.model.path.suffix == ".gguf":
            raise ConfigError(
                f"peft cannot load the base {model.run.model.path.name}; give --base-model NAME, the same model in "
                "Hugging Face format"
            )
        export_adapter(
            output,
            hf_config=model.checkpoint.hf_config,
            lora_params=model.lora_params,
            lora=model.run.model.lora,
            base_model=base_model or _base_name(model, model.run),
            overwrite=overwrite,
            **texts,
        )
        return
    export_model(
        output,
        hf_config=model.checkpoint.hf_config,
        params=model.params,
        lora_params=model.lora_params,
        lora=model.run.model.lora,
        generation_config=model.checkpoint.generation_config,
        dtype=dtype or "bf16",
        max_shard_size=max_shard_size or "5GB",
        overwrite=overwrite,
        **texts,
    )


def _card(model: LoadedModel, config: Config, workdir: Path, adapter: bool) -> str:
    sources = [f"{s.format}: {Path(s.path).name if s.path else s.name}" for s in config.data.train]
    settings: dict[str, Any] = {
        "loss": config.loss.name,
        **config.loss.model_dump(exclude={"name", "margin_model"}),
        "steps": model.step,
        "pairs per step": config.train.batch_size,
        "learning rate": config.optimizer.learning_rate,
        "adapter rank": config.model.lora.rank if config.model.lora else None,
    }
    report = read_report(workdir, "after")
    figures = {}
    # The figures are those of the last step: another checkpoint has none.
    if report is not None and report.step == model.step:
        rows = {**report.categories, "all pairs": report.overall}
        figures = {
            name: {column: values[field] for column, field in CARD_COLUMNS.items()}
            for name, values in rows.items()
        }
    return model_card(
        title=workdir.resolve().name,
        method=config.loss.name,
        data=sources,
        base_model=_base_name(model, config),
        explanation=EXPLANATION.format(
            beta=config.loss.reward_beta, threshold=config.adaptive.violation.threshold
        ),
        settings={name: value for name, value in settings.items() if value is not None},
        categories=figures,
        adapter=adapter,
    )


def _base_name(model: LoadedModel, config: Config) -> str:
    """The name that the base model goes by; never a path of this machine."""
    name = model.checkpoint.hf_config.get("_name_or_path") or ""
    return name if name and not Path(name).is_absolute() else config.model.path.name
