"""`jaxalign evaluate`: preference figures of a run or of a Hugging Face model, per harm category."""

import dataclasses
from pathlib import Path

from jaxalign.config import ConfigError, load_config
from jaxalign.data.sources import Split
from jaxalign.evaluation.bootstrap import Resampling
from jaxalign.evaluation.heldout_pairs import heldout_pairs, interval_rates
from jaxalign.evaluation.preference import PreferenceReport, preference_report
from jaxalign.run.data import load_split, load_tokenizer
from jaxalign.run.load import WhichStep, load_model, run_config


def evaluate(
    path: Path, data: Path | None, *, split: Split, reference: Path | None, step: WhichStep, batch_size: int
) -> PreferenceReport:
    """Figures of the model at `path` against its reference, on the data of its run or of a configuration.

    Both are computed in the dtypes of that run or configuration: a model against itself gives ties.
    """
    run = run_config(path)
    config = load_config(data) if data is not None else run
    if config is None:
        raise ConfigError(f"{path} is no run, so nothing says which data to use; give --data CONFIG")
    if run is None and reference is None:
        raise ConfigError(
            f"{path} is a pretrained model: give --reference, the model that it was trained from"
        )
    owner = run or config  # whose dtypes, beta and threshold hold; --data brings data only
    numerics = owner.model
    model = load_model(path, step=step, numerics=numerics)
    tokenizer = load_tokenizer(run) if run is not None else model.checkpoint.load_tokenizer()
    dataset, _ = load_split(config.data, tokenizer, split)
    logps = model.logps(model.lora_params, dataset, batch_size=batch_size, label="policy")
    step, vocab_size = model.step, model.checkpoint.config.vocab_size
    if reference is None and model.lora_params is not None:
        base = model.logps(None, dataset, batch_size=batch_size, label="reference")  # the adapter's own base
    else:
        del model  # two models need not fit
        source = reference or numerics.path
        other = load_model(source, numerics=numerics)
        if other.checkpoint.config.vocab_size != vocab_size:
            raise ConfigError(
                f"the reference {source} has a vocabulary of {other.checkpoint.config.vocab_size}, {path} one of "
                f"{vocab_size}: they cannot be compared token by token"
            )
        base = other.logps(other.lora_params, dataset, batch_size=batch_size, label="reference")
    beta = owner.loss.reward_beta
    report = preference_report(
        logps, base, dataset, beta=beta, threshold=owner.adaptive.violation.threshold, step=step
    )
    pairs = heldout_pairs(logps, base, dataset, beta=beta)
    rates = interval_rates(pairs, pairs.accuracy, Resampling())
    intervals = {name: (rate.low, rate.high) for name, rate in rates.items()}
    return dataclasses.replace(report, accuracy_intervals=intervals)
