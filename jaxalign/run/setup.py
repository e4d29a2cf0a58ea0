"""A run made ready: mesh, model, data with reference figures, optimizer, compiled step and initial state."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jaxalign.batch import PairBatch
from jaxalign.config import Config, ConfigError
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import PairLoader, padded_length
from jaxalign.hf.checkpoint import Checkpoint, tokenizer_fingerprint
from jaxalign.hf.read import open_checkpoint
from jaxalign.losses import dpo_loss
from jaxalign.parallel import (
    batch_sharding,
    is_main_process,
    make_mesh,
    put_global,
    replicated,
    tree_shardings,
    with_shardings,
)
from jaxalign.run.checks import limited_heldout, usable_data
from jaxalign.run.data import RunData, load_data, load_tokenizer
from jaxalign.run.manifest import model_fingerprint
from jaxalign.run.margin_model import check_margin_model, margin_model_fingerprint, margin_rewards
from jaxalign.run.policy import LogpsPass, Policy, longest_response, make_policy
from jaxalign.run.reference import reference_ingredients, visited_rows, with_reference
from jaxalign.training.logps import PairLogpsFn, without_prompts
from jaxalign.training.loop import sampling_state
from jaxalign.training.loss_settings import ModpoConfig
from jaxalign.training.objective import Objective
from jaxalign.training.optimizer import make_optimizer, make_schedule
from jaxalign.training.reference import reference_key
from jaxalign.training.state import TrainState, init_state, state_shardings
from jaxalign.training.step import StepFn, make_train_step

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything of a run but the state that changes."""

    config: Config
    mesh: Mesh
    data: RunData
    policy: Policy
    objective: Objective
    num_steps: int
    length: int
    frozen: Any
    step_fn: StepFn
    abstract_state: TrainState
    new_state: Callable[[], TrainState] | None
    policy_pass: LogpsPass
    fingerprints: dict[str, Any]

    def loader(self) -> PairLoader:
        """Training batches by step."""
        return make_loader(self.config, self.data, self.length)

    def place(self, batch: PairBatch) -> PairBatch:
        """A host batch on the mesh."""
        return put_global(batch, batch_sharding(self.mesh))

    def heldout_logps(self, params: Any) -> np.ndarray:
        """[n, 2] policy log-probs of the held-out pairs."""
        heldout = self.data.splits["heldout"]
        return self.policy_pass(
            params, self.frozen, heldout, length=self.length, label="evaluate held-out pairs"
        )


def make_loader(config: Config, data: RunData, length: int) -> PairLoader:
    """Training batches by step."""
    return PairLoader(
        data.train,
        batch_size=config.train.batch_size,
        length=length,
        seed=config.train.seed,
        sampling=config.data.sampling,
    )


def count_steps(config: Config, num_pairs: int) -> int:
    """Steps of the whole run."""
    if config.train.num_steps is not None:
        return config.train.num_steps
    assert config.train.num_epochs is not None  # one of the two is given: checked with the configuration
    return config.train.num_epochs * -(-num_pairs // config.train.batch_size)


def prepare(
    config: Config, workdir: Path, devices: list[jax.Device] | None = None, *, resuming: bool = False
) -> Run:
    """Load model and data, run the reference pass, build the step; on all devices unless some are given.

    A run that is `resuming` from a checkpoint has no `new_state`, and does not keep the base for it.
    Raises ConfigError, DataError, CheckpointError, UnsupportedModelError.
    """
    devices = jax.devices() if devices is None else devices
    config.check_devices(len(devices))
    mesh = make_mesh(config.mesh, devices)
    checkpoint = open_checkpoint(config.model.path)
    tokenizer = load_tokenizer(config)
    data = usable_data(limited_heldout(load_data(config.data, tokenizer), config), checkpoint, config)
    num_steps = count_steps(config, len(data.train))
    length = row_length(config, data)
    policy = make_policy(config.model, checkpoint.config, mesh, longest_response(*data.splits.values()))
    fingerprints = _fingerprints(checkpoint, tokenizer, data)
    if isinstance(config.loss, ModpoConfig):
        check_margin_model(
            config.loss.margin_model, config.model, checkpoint, tokenizer, fingerprints["model"]
        )

    base_shardings = tree_shardings(policy.decoder.logical_dims(), policy.decoder.abstract_params(), mesh)
    log.info("loading the model from %s", config.model.path)
    base = checkpoint.load_params(policy.decoder.abstract_params(), base_shardings, config.model.param_dtype)
    data = _with_references(config, data, policy, base, mesh, fingerprints, length, num_steps, workdir)
    if isinstance(config.loss, ModpoConfig):
        cache_dir = config.reference.cache_dir or workdir / "reference"
        data = _with_margin_rewards(config, config.loss, data, fingerprints, length, cache_dir)

    objective = config.make_objective()
    schedule = make_schedule(config.optimizer, num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    trainable_shardings = tree_shardings(policy.trainable_dims(), policy.abstract_trainable(), mesh)
    make_state = _state_maker(config, objective, optimizer)
    abstract = jax.eval_shape(make_state, policy.abstract_trainable())
    shardings = state_shardings(abstract, trainable_shardings, optimizer, mesh)
    start = _new_state(config, policy, base, make_state, trainable_shardings, shardings)
    step = make_train_step(
        policy.logps,
        policy.reference_fn(config.reference.mode),
        objective,
        optimizer,
        schedule,
        num_micro_batches=config.train.num_micro_batches,
        policy_logps_alone=_logps_alone(config, policy, data.train),
    )
    return Run(
        config=config,
        mesh=mesh,
        data=data,
        policy=policy,
        objective=objective,
        num_steps=num_steps,
        length=length,
        frozen=_frozen(config, policy, base, resuming=resuming),
        step_fn=jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh))),
        abstract_state=with_shardings(abstract, shardings),
        new_state=None if resuming else start,
        policy_pass=LogpsPass(policy.logps, mesh, _evaluation_batch(config), show=is_main_process()),
        fingerprints=fingerprints,
    )


def row_length(config: Config, data: RunData) -> int:
    """Tokens of a row: the longest pair, and where the policy reads responses alone, also those."""
    with_policy_mi = config.adaptive.mi_source == "policy"
    alone = [data.train.without_prompts()] if with_policy_mi else []
    return padded_length([*data.splits.values(), *alone])


def _logps_alone(config: Config, policy: Policy, dataset: TokenizedDataset) -> PairLogpsFn | None:
    """Log-probs of responses without their prompts under the policy; None where nothing reads them."""
    if config.adaptive.mi_source == "reference":
        return None
    empty = dataset.empty_prompt_ids
    return lambda params, frozen, batch: policy.logps(params, frozen, without_prompts(batch, empty))


def _state_maker(
    config: Config, objective: Objective, optimizer: optax.GradientTransformation
) -> Callable[[Any], TrainState]:
    def make_state(params: Any) -> TrainState:
        return init_state(params, optimizer, objective.init(), config.train.seed)

    return make_state


def _new_state(
    config: Config,
    policy: Policy,
    base: Any,
    make_state: Callable[[Any], TrainState],
    trainable_shardings: Any,
    shardings: TrainState,
) -> Callable[[], TrainState]:
    """A function that makes the first state; to be called once, as full training donates the base to it."""
    make = jax.jit(make_state, out_shardings=shardings, donate_argnums=0)
    if policy.decoder.lora is None:
        return lambda: make(base)
    key = jax.random.key(config.train.seed)
    return lambda: make(jax.device_put(policy.decoder.init_lora(key), trainable_shardings))


def _frozen(config: Config, policy: Policy, base: Any, *, resuming: bool) -> Any:
    """The parameters that do not train: the base of an adapter, or the reference of an online run."""
    if policy.decoder.lora is not None:
        return {"base": base}
    if config.reference.mode != "online":
        return {}
    return {"reference": base if resuming else jax.tree.map(lambda x: x.copy(), base)}


def _with_references(
    config: Config,
    data: RunData,
    policy: Policy,
    base: Any,
    mesh: Mesh,
    fingerprints: dict[str, Any],
    length: int,
    num_steps: int,
    workdir: Path,
) -> RunData:
    loader = make_loader(config, data, length)
    cache_dir = config.reference.cache_dir or workdir / "reference"
    base_pass = LogpsPass(policy.model_logps, mesh, _evaluation_batch(config), show=is_main_process())
    splits: dict[str, TokenizedDataset] = {}
    for split, dataset in data.splits.items():
        train = split == "train"
        rows = visited_rows(loader, num_steps) if train else np.arange(len(dataset))
        with_mi = train and config.reads_reference_mi  # held-out figures do not read MI
        needed = config.reference.mode == "precomputed" or with_mi or config.loss.reads == "margin_rewards"
        if train and not needed:
            splits[split] = dataset  # nothing of the pass would be read
            continue
        ingredients = reference_ingredients(config, fingerprints, split, rows, with_mi=with_mi)
        splits[split] = with_reference(
            config, dataset, rows, split, base, base_pass, ingredients, length=length, cache_dir=cache_dir
        )
        fingerprints[f"reference {split}"] = reference_key(ingredients)
    return RunData(splits["train"], splits.get("heldout"), data.reports)


def _with_margin_rewards(
    config: Config,
    loss: ModpoConfig,
    data: RunData,
    fingerprints: dict[str, Any],
    length: int,
    cache_dir: Path,
) -> RunData:
    """The training pairs with the margin model's rewards as their scores."""
    fingerprints["margin model"] = margin_model_fingerprint(loss.margin_model)
    rewards = margin_rewards(
        loss,
        data.train,
        fingerprint=fingerprints["margin model"],
        numerics=config.model,
        length=length,
        batch_size=_evaluation_batch(config),
        cache_dir=cache_dir,
    )
    return dataclasses.replace(data, train=dataclasses.replace(data.train, scores=rewards))


def check_start(run: Run, state: TrainState) -> None:
    """Before the first step, plain DPO of the unchanged policy is ln 2, or policy and reference differ."""
    if run.config.reference.mode == "none":
        return
    # No more pairs than training has on the devices at a time.
    loader = run.loader()
    whole = loader.batch(0, sampling_state(loader, state))
    host_batch = jax.tree.map(lambda x: x[: run.config.micro_batch_size()], whole)
    batch = run.place(host_batch)
    logps = jax.jit(run.policy.logps, out_shardings=replicated(run.mesh))(state.params, run.frozen, batch)
    reference_fn = run.policy.reference_fn(run.config.reference.mode)
    reference = jax.jit(reference_fn, out_shardings=replicated(run.mesh))(run.frozen, batch)
    loss = dpo_loss(*np.asarray(logps).T, *np.asarray(reference).T, beta=run.config.loss.reward_beta)
    real = host_batch.weight > 0
    mean = float(np.asarray(loss, np.float64)[real].mean())
    if not abs(mean - np.log(2.0)) < 1e-3:
        raise ConfigError(
            f"plain DPO of the unchanged policy is {mean:.6f}, expected ln 2 = {np.log(2.0):.6f} within 0.001: "
            f"policy and reference do not compute the same. With model.dtype {run.config.model.dtype} try float32; "
            "a reference file must come from this model"
        )
    log.info("start: plain DPO of the unchanged policy is %.6f (ln 2 = %.6f)", mean, np.log(2.0))


def _evaluation_batch(config: Config) -> int:
    return config.evaluation.batch_size or config.micro_batch_size()


def _fingerprints(checkpoint: Checkpoint, tokenizer: Any, data: RunData) -> dict[str, Any]:
    return {
        "model": model_fingerprint(checkpoint),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        **{f"data {split}": dataset.fingerprint() for split, dataset in data.splits.items()},
    }
