"""`jaxalign train --dry-run`: everything that can be checked without training, and for pods that are not here."""

from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxalign.config import Config, ConfigError
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import PairLoader
from jaxalign.data.packing import RowShape
from jaxalign.hf.read import open_checkpoint
from jaxalign.parallel import AXES, device_bytes, num_groups, tree_shardings
from jaxalign.parallel.mesh import abstract_mesh
from jaxalign.run.checks import usable_data
from jaxalign.run.data import load_data, load_tokenizer
from jaxalign.run.interview import check_interviews
from jaxalign.run.loader import describe_rows, make_loader
from jaxalign.run.manifest import model_fingerprint
from jaxalign.run.margin_model import check_margin_model, margin_model_bytes
from jaxalign.run.policy import Policy, make_policy, row_multiple
from jaxalign.run.probe import check_probe_steps
from jaxalign.run.workdir import run_to_resume
from jaxalign.training.loss_settings import ModpoConfig
from jaxalign.training.optimizer import make_optimizer, make_schedule
from jaxalign.training.state import init_state, state_shardings, widened
from jaxalign.training.trackers import check_trackers

NUM_SHOWN = 3
GIB = 2**30


def dry_run(config: Config, workdir: Path, console: Console) -> None:
    """Check workdir, configuration, model, data, mesh and memory, and show a few pairs as the model will see them.

    No weights are loaded: numbers that are not finite, a policy that is not its reference, and a reference.file that
    is missing or of something else are seen by training alone. Raises as `prepare` does.
    """
    resumed = run_to_resume(config, workdir)
    check_trackers(config.logging)
    check_interviews(config)
    num_devices = config.mesh.num_devices() or jax.device_count()
    config.check_devices(num_devices)
    checkpoint = open_checkpoint(config.model.path)
    here = num_devices == jax.device_count()
    # Devices that are not here may have any kernel: of these only shapes are checked.
    model = config.model if here else config.model.model_copy(update={"attention": "auto"})
    policy = make_policy(model, checkpoint.config, None)
    checkpoint.check(policy.decoder.abstract_params())
    tokenizer = load_tokenizer(config)
    data = usable_data(load_data(config.data, tokenizer), checkpoint, config)
    if isinstance(config.loss, ModpoConfig):
        fingerprint = model_fingerprint(checkpoint)
        check_margin_model(config.loss.margin_model, config.model, checkpoint, tokenizer, fingerprint)
    show_pairs(data.train, tokenizer, console)
    loader = loader_for(config, data.train, num_devices, here=here)
    check_probe_steps(config, loader.num_steps)
    console.print(describe_rows(config, loader))
    axes = dict(zip(AXES, config.mesh.shape(num_devices), strict=True))
    console.print(f"mesh {axes} over {num_devices} devices")
    if not here:
        console.print(
            f"this machine has {jax.device_count()} devices: only shapes were checked for {num_devices}"
        )
    console.print(memory_table(config, policy, num_devices, loader.num_steps, loader.shape))
    if resumed is not None:
        console.print(f"{workdir} holds a run that would be resumed", markup=False)
    console.print("nothing was found that keeps the configuration from running; nothing was trained")


def loader_for(config: Config, train: TokenizedDataset, num_devices: int, *, here: bool) -> PairLoader:
    """The batches as training on that many devices makes them."""
    on_cpu = here and jax.default_backend() == "cpu"
    groups = num_groups(abstract_mesh(config.mesh, num_devices))
    return make_loader(config, train, groups, row_multiple("cpu" if on_cpu else "tpu"))


def show_pairs(dataset: TokenizedDataset, tokenizer: Any, console: Console) -> None:
    """The first pairs: prompt, then in brackets the tokens that the loss counts, and the labels."""
    for row in range(min(NUM_SHOWN, len(dataset))):
        held = dataset.categories[row] > 0
        names = [name for name, inside in zip(dataset.category_names, held, strict=True) if inside]
        console.print(f"pair {dataset.origins[row]}: {', '.join(names) or 'no category'}", markup=False)
        console.print(f"  prompt   {tokenizer.decode(dataset.prompt_ids[row])!r}", markup=False)
        for name, ids, unsafe in (
            ("chosen", dataset.chosen_ids[row], dataset.chosen_unsafe[row]),
            ("rejected", dataset.rejected_ids[row], dataset.rejected_unsafe[row]),
        ):
            label = "unsafe" if unsafe else "safe"
            text = f"  {name:8s} [{tokenizer.decode(ids)}] {len(ids)} tokens, {label}"
            console.print(text, markup=False, highlight=False)


def memory_estimate(
    config: Config, policy: Policy, num_devices: int, num_steps: int, shape: RowShape
) -> dict[str, int]:
    """Bytes per device by purpose; state is exact, activations are an estimate."""
    mesh = abstract_mesh(config.mesh, num_devices)
    decoder = policy.decoder
    trainable = policy.abstract_trainable()
    shardings = tree_shardings(policy.trainable_dims(), trainable, mesh)
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, num_steps))
    adaptive = config.make_objective().init()
    state = jax.eval_shape(lambda params: init_state(params, optimizer, adaptive, 0), trainable)
    placed = state_shardings(state, shardings, optimizer, mesh)
    frozen = 0
    if decoder.lora is not None or config.reference.mode == "online":
        frozen = _base_bytes(config, policy, num_devices)
    return {
        "trained parameters": device_bytes(state.params, placed.params),
        # Gradients add up in float32; micro-batches have one more set of them.
        "gradients": device_bytes(jax.eval_shape(widened, state.params), placed.params)
        * (1 if config.train.num_micro_batches == 1 else 2),
        "optimizer state": device_bytes(state.opt_state, placed.opt_state),
        "frozen parameters": frozen,
        "activations (estimate)": _activation_bytes(config, policy, shape, mesh.shape["tensor"]),
    }


def _activation_bytes(config: Config, policy: Policy, shape: RowShape, tensor: int) -> int:
    """What the backward pass keeps by remat policy, one layer's work, two chunks of float32 logits, and the head.

    The head is gathered whole over fsdp; where it trains, so is its float32 gradient.
    """
    model = policy.decoder.config
    width = 2 if config.model.dtype == "bfloat16" else 4
    tokens = shape.num_rows // shape.num_groups * shape.length
    inner = 2 * model.head_dim * (model.num_heads + model.num_kv_heads) + 3 * model.intermediate_size
    layer = tokens * (4 * model.hidden_size + inner // tensor) * width
    dense = config.model.attention == "dense"  # the other kernels hold no scores
    scores = tokens * shape.length * model.num_heads // tensor * 4 if dense else 0
    kept = {"full": tokens * model.hidden_size * width, "dots": layer, "none": layer + scores}
    chunk = min(config.model.logps_chunk_size, shape.num_targets)
    logits = 2 * chunk * model.vocab_size // tensor * 4
    head = model.hidden_size * model.vocab_size // tensor * (width if config.model.lora else width + 4)
    return head + model.num_layers * kept[config.model.remat] + layer + scores + logits


def memory_table(config: Config, policy: Policy, num_devices: int, num_steps: int, shape: RowShape) -> Table:
    """The estimate as a table, with the device's capacity where it is known.

    A margin model is on the devices before training alone, beside the base model: no part of the sum.
    """
    estimate = memory_estimate(config, policy, num_devices, num_steps, shape)
    needed = sum(estimate.values())
    rows = [*estimate.items(), ("sum", needed)]
    if isinstance(config.loss, ModpoConfig):
        before = _base_bytes(config, policy, num_devices)
        before += margin_model_bytes(config.loss.margin_model, config.model, num_devices)
        rows.append(("before training: base and margin model", before))
        needed = max(needed, before)
    table = Table(title="Memory per device")
    table.add_column("what")
    table.add_column("GiB", justify="right")
    for name, size in rows:
        table.add_row(name, f"{size / GIB:.3f}")
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None and "bytes_limit" in stats and num_devices == jax.device_count():
        table.add_row("capacity", f"{stats['bytes_limit'] / GIB:.3f}")
        if needed > stats["bytes_limit"]:
            raise ConfigError(
                f"about {needed / GIB:.1f} GiB per device are needed, "
                f"{stats['bytes_limit'] / GIB:.1f} are there; raise mesh.fsdp or train.num_micro_batches, "
                "or set model.remat: full"
            )
    return table


def _base_bytes(config: Config, policy: Policy, num_devices: int) -> int:
    """Bytes of the base model on one device."""
    base = policy.decoder.abstract_params()
    mesh = abstract_mesh(config.mesh, num_devices)
    return device_bytes(base, tree_shardings(policy.decoder.logical_dims(), base, mesh))
