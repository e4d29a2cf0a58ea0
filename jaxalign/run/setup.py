"""A run made ready: mesh, model, data with reference figures, optimizer, compiled step and initial state."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.batch import PairBatch
from jaxalign.config import Config
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import PairLoader
from jaxalign.hf.checkpoint import Checkpoint, tokenizer_fingerprint
from jaxalign.hf.read import open_checkpoint
from jaxalign.parallel import (
    batch_sharding,
    is_main_process,
    make_mesh,
    num_groups,
    put_global,
    shardings_of,
)
from jaxalign.progress import StageTimes
from jaxalign.run.checks import limited_heldout, usable_data
from jaxalign.run.data import RunData, load_data, load_tokenizer
from jaxalign.run.loader import describe_rows, make_loader
from jaxalign.run.logps_pass import LogpsPass
from jaxalign.run.manifest import model_fingerprint
from jaxalign.run.margin_model import check_margin_model, margin_model_fingerprint, margin_rewards
from jaxalign.run.policy import check_attention, platform_of, row_multiple
from jaxalign.run.program import Program, build_program, frozen_parameters
from jaxalign.run.reference import reference_ingredients, visited_rows, with_reference
from jaxalign.training.loss_settings import ModpoConfig
from jaxalign.training.reference import reference_key
from jaxalign.training.state import TrainState

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything of a run but the state that changes."""

    config: Config
    program: Program
    data: RunData
    num_steps: int
    loader: PairLoader
    frozen: Any
    new_state: Callable[[], TrainState] | None
    policy_pass: LogpsPass
    fingerprints: dict[str, Any]
    times: StageTimes

    def place(self, batch: PairBatch) -> PairBatch:
        """A host batch on the mesh."""
        return put_global(batch, batch_sharding(self.program.mesh))

    def heldout_logps(self, params: Any) -> np.ndarray:
        """[n, 2] policy log-probs of the held-out pairs."""
        heldout = self.data.splits["heldout"]
        return self.policy_pass(params, self.frozen, heldout, label="evaluate held-out pairs")


def prepare(
    config: Config, workdir: Path, devices: list[jax.Device] | None = None, *, resuming: bool = False
) -> Run:
    """Load model and data, run the reference pass, build the step; on all devices unless some are given.

    A run that is `resuming` from a checkpoint has no `new_state`, and does not keep the base for it.
    Raises ConfigError, DataError, CheckpointError, UnsupportedModelError.
    """
    times = StageTimes()
    devices = jax.devices() if devices is None else devices
    config.check_devices(len(devices))
    mesh = make_mesh(config.mesh, devices)
    checkpoint = open_checkpoint(config.model.path)
    check_attention(config.model, checkpoint.config, platform_of(mesh))
    tokenizer = load_tokenizer(config)
    data = usable_data(limited_heldout(load_data(config.data, tokenizer), config), checkpoint, config)
    loader = make_loader(config, data.train, num_groups(mesh), row_multiple(platform_of(mesh)))
    log.info("%s", describe_rows(config, loader))
    program = build_program(config, checkpoint.config, mesh, loader.num_steps)
    fingerprints = _fingerprints(checkpoint, tokenizer, data)
    times.done("read the data")
    if isinstance(config.loss, ModpoConfig):
        check_margin_model(
            config.loss.margin_model, config.model, checkpoint, tokenizer, fingerprints["model"]
        )

    log.info("loading the model from %s", config.model.path)
    placed = shardings_of(program.abstract_base)
    base = checkpoint.load_params(program.abstract_base, placed, config.model.param_dtype)
    times.done("load the model")
    data = _with_references(config, data, program, base, loader, fingerprints, workdir)
    times.done("reference")
    if isinstance(config.loss, ModpoConfig):
        cache_dir = config.reference.cache_dir or workdir / "reference"
        data = _with_margin_rewards(config, config.loss, data, fingerprints, cache_dir)
        times.done("margin rewards")
    start = _new_state(config, program, base)
    return Run(
        config=config,
        program=program,
        data=data,
        num_steps=loader.num_steps,
        loader=loader.over(data.train),
        frozen=_frozen(config, base, resuming=resuming),
        new_state=None if resuming else start,
        policy_pass=_logps_pass(config, program, program.policy.logps),
        fingerprints=fingerprints,
        times=times,
    )


def _logps_pass(config: Config, program: Program, logps: Callable[..., jax.Array]) -> LogpsPass:
    """Forward passes of this run over whole data sets."""
    rows = config.rows.model_copy(update={"length": None})  # that length is the one of training rows
    return LogpsPass(logps, program.mesh, config.evaluation_batch_size(), rows, show=is_main_process())


def _new_state(config: Config, program: Program, base: Any) -> Callable[[], TrainState]:
    """A function that makes the first state; to be called once, as full training donates the base to it."""
    shardings = shardings_of(program.abstract_state)
    make = jax.jit(program.make_state, out_shardings=shardings, donate_argnums=0)
    decoder = program.policy.decoder
    if decoder.lora is None:
        return lambda: make(base)
    key = jax.random.key(config.train.seed)
    return lambda: make(jax.device_put(decoder.init_lora(key), shardings.params))


def _frozen(config: Config, base: Any, *, resuming: bool) -> Any:
    """The frozen parameters; a copy where full training starts from the same ones, and donates them."""
    frozen = frozen_parameters(config, base)
    donated = config.model.lora is None and not resuming
    return jax.tree.map(lambda x: x.copy(), frozen) if donated else frozen


def _with_references(
    config: Config,
    data: RunData,
    program: Program,
    base: Any,
    loader: PairLoader,
    fingerprints: dict[str, Any],
    workdir: Path,
) -> RunData:
    cache_dir = config.reference.cache_dir or workdir / "reference"
    base_pass = _logps_pass(config, program, program.policy.model_logps)
    splits: dict[str, TokenizedDataset] = {}
    for split, dataset in data.splits.items():
        train = split == "train"
        rows = visited_rows(loader) if train else np.arange(len(dataset))
        with_mi = train and config.reads_reference_mi  # held-out figures do not read MI
        if train and not config.needs_reference_figures:
            splits[split] = dataset  # nothing of the pass would be read
            continue
        ingredients = reference_ingredients(config, fingerprints, split, rows, with_mi=with_mi)
        splits[split] = with_reference(
            config, dataset, rows, split, base, base_pass, ingredients, cache_dir=cache_dir
        )
        fingerprints[f"reference {split}"] = reference_key(ingredients)
    return RunData(splits["train"], splits.get("heldout"), data.reports)


def _with_margin_rewards(
    config: Config,
    loss: ModpoConfig,
    data: RunData,
    fingerprints: dict[str, Any],
    cache_dir: Path,
) -> RunData:
    """The training pairs with the margin model's rewards as their scores."""
    fingerprints["margin model"] = margin_model_fingerprint(loss.margin_model)
    rewards = margin_rewards(
        loss,
        data.train,
        fingerprint=fingerprints["margin model"],
        numerics=config.model,
        batch_size=config.evaluation_batch_size(),
        cache_dir=cache_dir,
    )
    return dataclasses.replace(data, train=dataclasses.replace(data.train, scores=rewards))


def _fingerprints(checkpoint: Checkpoint, tokenizer: Any, data: RunData) -> dict[str, Any]:
    return {
        "model": model_fingerprint(checkpoint),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        **{f"data {split}": dataset.fingerprint() for split, dataset in data.splits.items()},
    }
