"""`jaxalign plan`: architecture and rows found, each slice estimated, results printed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxalign.config import Config, ConfigError
from jaxalign.hf.read import open_checkpoint
from jaxalign.models.config import DecoderConfig, decoder_config_from_hf
from jaxalign.models.presets import ARCHITECTURES
from jaxalign.parallel import num_groups
from jaxalign.parallel.mesh import abstract_mesh
from jaxalign.parallel.topology import Topology, tpu_topology
from jaxalign.run.plan.estimate import Estimate, estimate_step
from jaxalign.run.plan.report import as_dict, print_estimate, size_text
from jaxalign.run.plan.search import search
from jaxalign.run.plan.workload import assumed_workload
from jaxalign.run.policy import row_multiple

NUM_SHOWN = 5


@dataclass(frozen=True)
class PairLengths:
    """Tokens that every pair is taken to have; None: the most that the configuration lets through."""

    prompt: int | None = None
    response: int | None = None


def plan(
    config: Config,
    topologies: Sequence[str],
    console: Console,
    *,
    architecture: str | None = None,
    lengths: PairLengths = PairLengths(),
    searching: bool = False,
    as_json: bool = False,
) -> bool:
    """Estimate each slice, and search it for better settings if asked; True if the configuration fits all of them.

    Raises TopologyError, MissingLibtpuError, ConfigError, MeshError, UnsupportedModelError.
    """
    model = find_architecture(config, architecture)
    slices = [tpu_topology(name) for name in topologies]
    results = []
    fits = True
    for topology in slices:
        estimate = estimate_slice(config, model, topology, lengths)
        fits &= estimate.fits
        results.append(as_dict(config, estimate))
        if not as_json:
            print_estimate(config, estimate, console)
        if searching:
            found = search_slice(config, model, topology, lengths, Console(stderr=True))
            results[-1]["search"] = [as_dict(*best) for best in found]
            if not as_json:
                console.print(_search_table(found[:NUM_SHOWN]))
    if as_json:
        print(json.dumps(results, indent=2))
    return fits


def find_architecture(config: Config, architecture: str | None) -> DecoderConfig:
    """The model of the configuration, or the one of a name or of a config.json that is given instead.

    Raises ConfigError if there is none, UnsupportedModelError if it is not implemented.
    """
    if architecture in ARCHITECTURES:
        return decoder_config_from_hf(ARCHITECTURES[architecture])
    names = ", ".join(ARCHITECTURES)
    if architecture is not None:
        path = Path(architecture)
        if not path.is_file():
            raise ConfigError(f"--architecture {architecture}: expected a config.json, or one of {names}")
        try:
            return decoder_config_from_hf(json.loads(path.read_text()))
        except json.JSONDecodeError as error:
            raise ConfigError(f"--architecture {path}: not JSON ({error})") from error
    if not config.model.path.exists():
        raise ConfigError(
            f"model.path {config.model.path} is not here; weights are not needed to plan, but the architecture is: "
            f"give --architecture, a config.json or one of {names}"
        )
    return open_checkpoint(config.model.path).config


def estimate_slice(
    config: Config, model: DecoderConfig, topology: Topology, lengths: PairLengths
) -> Estimate:
    """One configuration on one slice."""
    config.check_devices(len(topology.devices))
    data, train = config.data, config.train
    workload = assumed_workload(
        config,
        model,
        lengths.prompt or data.max_prompt_length,
        lengths.response or data.max_response_length,
        num_groups(abstract_mesh(config.mesh, len(topology.devices))),
        row_multiple("tpu"),
    )
    # The schedule is part of the program, but its length changes nothing of what is estimated.
    num_steps = train.num_steps or config.optimizer.warmup_steps + 1000
    return estimate_step(config, model, topology, workload, num_steps)


def search_slice(
    config: Config, model: DecoderConfig, topology: Topology, lengths: PairLengths, progress: Console
) -> list[tuple[Config, Estimate]]:
    """Settings that fit the slice, the best first, with a line for each that is tried."""

    def show(candidate: Config, estimate: Estimate) -> None:
        bound = f"{max(estimate.seconds.values()):.3g} s" if estimate.fits else "does not fit"
        progress.print(
            f"tried {_settings(candidate)}: {bound}, {size_text(estimate.needed)}, "
            f"{estimate.compile_seconds:.0f} s to compile",
            highlight=False,
            soft_wrap=True,
        )

    return search(
        config,
        model,
        len(topology.devices),
        lambda candidate: estimate_slice(candidate, model, topology, lengths),
        show,
    )


def _settings(config: Config) -> str:
    mesh = " x ".join(f"{axis} {size}" for axis, size in config.mesh.model_dump().items() if size != 1)
    return f"{mesh or 'data 1'}, remat {config.model.remat}, {config.train.num_micro_batches} micro-batches"


def _search_table(found: Sequence[tuple[Config, Estimate]]) -> Table:
    table = Table("settings, the best first", box=SIMPLE_HEAD)
    for name in ("step, s", "bound by", "MFU bound", "memory"):
        table.add_column(name, justify="right")
    for config, estimate in found:
        step = max(estimate.seconds.values())
        table.add_row(
            _settings(config),
            f"{step:.3g}",
            estimate.bound_by,
            f"{estimate.mfu(step):.1%}",
            size_text(estimate.needed),
        )
    return table
