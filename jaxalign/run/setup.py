"""A run made ready: mesh, model, data with reference figures, optimizer, compiled step and initial state."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.batch import PairBatch
from jaxalign.config import Config, ConfigError
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import PairLoader
from jaxalign.hf.checkpoint import Checkpoint, tokenizer_fingerprint
from jaxalign.hf.read import open_checkpoint
from jaxalign.losses import dpo_loss
from jaxalign.parallel import (
    batch_sharding,
    is_main_process,
    make_mesh,
    num_groups,
    put_global,
    replicated,
    shardings_of,
)
from jaxalign.progress import StageTimes
from jaxalign.run.checks import limited_heldout, usable_data
from jaxalign.run.data import RunData, load_data, load_tokenizer
from jaxalign.run.logps_pass import LogpsPass
from jaxalign.run.manifest import model_fingerprint
from jaxalign.run.margin_model import check_margin_model, margin_model_fingerprint, margin_rewards
from jaxalign.run.policy import platform_of, row_multiple
from jaxalign.run.program import Program, build_program, frozen_parameters
from jaxalign.run.reference import reference_ingredients, visited_rows, with_reference
from jaxalign.training.loop import sampling_state
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


def make_loader(config: Config, train: TokenizedDataset, groups: int, multiple: int) -> PairLoader:
    """Training batches by step, for that many groups of rows. Raises ConfigError if a pair does not fit into a row."""
    try:
        return PairLoader(
            train,
            batch_size=config.train.batch_size,
            rows=config.rows,
            num_micro_batches=config.train.num_micro_batches,
            num_groups=groups,
            multiple=multiple,
            num_steps=config.train.num_steps,
            num_epochs=config.train.num_epochs,
            seed=config.train.seed,
            sampling=config.data.sampling,
            alone=config.adaptive.mi_source == "policy",
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


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
    tokenizer = load_tokenizer(config)
    data = usable_data(limited_heldout(load_data(config.data, tokenizer), config), checkpoint, config)
    loader = make_loader(config, data.train, num_groups(mesh), row_multiple(platform_of(mesh)))
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
        needed = config.reference.mode == "precomputed" or with_mi or config.loss.reads == "margin_rewards"
        if train and not needed:
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


def check_start(run: Run, state: TrainState) -> None:
    """Before the first step, plain DPO of the unchanged policy is ln 2, or policy and reference differ."""
    if run.config.reference.mode == "none":
        return
    # No more pairs than training has on the devices at a time.
    whole = run.loader.batch(0, sampling_state(run.loader, state))
    fullest = int(whole.weight.sum(axis=1).argmax())
    host_batch = jax.tree.map(lambda x: x[fullest : fullest + 1], whole)
    batch = run.place(host_batch)
    policy, everywhere = run.program.policy, replicated(run.program.mesh)
    reference_fn = policy.reference_fn(run.config.reference.mode)

    def both(params: Any, frozen: Any, batch: PairBatch) -> tuple[jax.Array, jax.Array]:
        micro = jax.tree.map(lambda x: x[0], batch)
        return policy.logps(params, frozen, micro), reference_fn(frozen, micro)

    logps, reference = jax.jit(both, out_shardings=everywhere)(state.params, run.frozen, batch)
    loss = dpo_loss(*np.asarray(logps).T, *np.asarray(reference).T, beta=run.config.loss.reward_beta)
    real = host_batch.weight[0] > 0
    mean = float(np.asarray(loss, np.float64)[real].mean())
    if not abs(mean - np.log(2.0)) < 1e-3:
        raise ConfigError(
            f"plain DPO of the unchanged policy is {mean:.6f}, expected ln 2 = {np.log(2.0):.6f} within 0.001: "
            f"policy and reference do not compute the same. With model.dtype {run.config.model.dtype} try float32; "
            "a reference file must come from this model"
        )
    log.info("start: plain DPO of the unchanged policy is %.6f (ln 2 = %.6f)", mean, np.log(2.0))


def _fingerprints(checkpoint: Checkpoint, tokenizer: Any, data: RunData) -> dict[str, Any]:
    return {
        "model": model_fingerprint(checkpoint),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        **{f"data {split}": dataset.fingerprint() for split, dataset in data.splits.items()},
    }
