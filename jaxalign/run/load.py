"""A trained or untrained model by its path: the workdir of a run, a Hugging Face directory, or a .gguf file."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign.config import Config, ConfigError, parse_config
from jaxalign.config.schema import ModelConfig
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.packing import round_up
from jaxalign.data.settings import RowsConfig
from jaxalign.hf.checkpoint import Checkpoint
from jaxalign.hf.read import open_checkpoint
from jaxalign.models.functional import DecoderFns
from jaxalign.parallel import (
    MeshConfig,
    is_main_process,
    make_mesh,
    num_groups,
    tree_shardings,
    with_shardings,
)
from jaxalign.run.logps_pass import LogpsPass
from jaxalign.run.manifest import model_fingerprint, read_manifest
from jaxalign.run.policy import Policy, make_policy
from jaxalign.training.checkpoint import Checkpointer

WhichStep = int | Literal["best"] | None
"""A checkpoint of a run: of this step, the selected one, or the newest."""

BEST = "best"
"""The folder in the workdir with the checkpoint of the selected state."""


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A decoder with its parameters, spread over all devices. `run` is the configuration it was trained with."""

    checkpoint: Checkpoint
    policy: Policy
    params: Any
    lora_params: Any
    mesh: Mesh
    run: Config | None
    step: int | None

    @property
    def decoder(self) -> DecoderFns:
        """The functions of the decoder."""
        return self.policy.decoder

    def logps(
        self,
        lora_params: Any,
        dataset: TokenizedDataset,
        *,
        batch_size: int,
        label: str,
    ) -> np.ndarray:
        """[n, 2] float32 log-probs of all pairs, with these adapters or without (None).

        Batches are those of `batch_size`, rounded up to spread over the devices.
        """
        batch_size = round_up(batch_size, num_groups(self.mesh))
        logps = self.policy.model_logps
        forward = LogpsPass(logps, self.mesh, batch_size, RowsConfig(), show=is_main_process())
        return forward(self.params, lora_params, dataset, label=label)


def is_run(path: Path) -> bool:
    """True for the workdir of a run."""
    return (path / "manifest.json").exists()


def load_model(
    path: Path, *, step: WhichStep = None, numerics: ModelConfig | None = None, with_base: bool = True
) -> LoadedModel:
    """Load parameters from a run's checkpoint or from a pretrained model.

    `numerics` gives the dtypes of a pretrained model (float32 without it); a run keeps its own. Attention is that of
    these devices, whatever a run was trained with. `with_base=False` leaves out the base of an adapter.
    Raises ConfigError or CheckpointError.
    """
    mesh = make_mesh(MeshConfig(data=1, fsdp="rest"))
    if is_run(path):
        return _load_run(path, step, mesh, with_base)
    if step is not None:
        raise ConfigError(f"--step {step} needs the workdir of a run; {path} has no manifest.json")
    checkpoint = open_checkpoint(path)
    # Without a run the numbers are float32, unless the numerics of another one are given.
    numerics = numerics or ModelConfig(path=path, dtype="float32", param_dtype="float32")
    policy = make_policy(
        _with_own_kernel(numerics.model_copy(update={"lora": None})), checkpoint.config, mesh
    )
    params = _pretrained(checkpoint, policy.decoder, mesh)
    return LoadedModel(checkpoint, policy, params, None, mesh, None, None)


def _with_own_kernel(config: ModelConfig) -> ModelConfig:
    """The same model with the kernel of these devices: a run may have been on others, and all kernels mean the same."""
    return config.model_copy(update={"attention": "auto"})


def run_config(path: Path) -> Config | None:
    """The configuration of the run in `path`, None where there is no run."""
    manifest = read_manifest(path)
    return None if manifest is None else _config_in(manifest, path)


def _config_in(manifest: dict[str, Any], path: Path) -> Config:
    return parse_config(manifest["config"], f"{path}/manifest.json")


def _load_run(workdir: Path, step: WhichStep, mesh: Mesh, with_base: bool) -> LoadedModel:
    manifest = read_manifest(workdir)
    assert manifest is not None  # is_run
    config = _config_in(manifest, workdir)
    checkpoint = open_checkpoint(config.model.path)
    if model_fingerprint(checkpoint) != manifest["fingerprints"]["model"]:
        raise ConfigError(
            f"{config.model.path} is not the model that {workdir} was trained from: its contents have changed"
        )
    policy = make_policy(_with_own_kernel(config.model), checkpoint.config, mesh)
    decoder = policy.decoder
    adapter = config.model.lora is not None
    abstract = decoder.abstract_lora() if adapter else decoder.abstract_params()
    dims = decoder.lora_logical_dims() if adapter else decoder.logical_dims()
    placed = with_shardings(abstract, tree_shardings(dims, abstract, mesh))
    if step == "best" and not any((workdir / BEST).glob("[0-9]*")):
        raise ConfigError(
            f"{workdir / BEST} holds no state: the run has no `selection`, or no state was eligible yet; leave out "
            "--step best"
        )
    folder, number = (workdir / BEST, None) if step == "best" else (workdir / "checkpoints", step)
    with Checkpointer(folder, keep=None) as checkpointer:
        parts, found = checkpointer.restore_parts({"params": placed}, number)
    if not adapter:
        return LoadedModel(checkpoint, policy, parts["params"], None, mesh, config, found)
    base = _pretrained(checkpoint, decoder, mesh) if with_base else None
    return LoadedModel(checkpoint, policy, base, parts["params"], mesh, config, found)


def _pretrained(checkpoint: Checkpoint, decoder: DecoderFns, mesh: Mesh) -> Any:
    abstract = decoder.abstract_params()
    shardings = tree_shardings(decoder.logical_dims(), abstract, mesh)
    dtype = jax.tree.leaves(abstract)[0].dtype
    return checkpoint.load_params(abstract, shardings, np.dtype(dtype))
