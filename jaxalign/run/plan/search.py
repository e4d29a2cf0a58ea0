"""Tries mesh shapes, remat policies and micro-batches one after the other, and keeps what gives the lowest bound."""

import contextlib
from collections.abc import Callable, Iterator

from jaxalign.config import Config, ConfigError
from jaxalign.models.config import DecoderConfig
from jaxalign.parallel import AXES
from jaxalign.parallel.mesh import MeshError
from jaxalign.run.plan.estimate import Estimate
from jaxalign.run.plan.report import MAX_TENSOR

REMAT = ("none", "dots", "full")

Try = Callable[[Config], Estimate]


def search(
    config: Config,
    architecture: DecoderConfig,
    num_devices: int,
    estimate: Try,
    on_tried: Callable[[Config, Estimate], None],
) -> list[tuple[Config, Estimate]]:
    """Configurations that fit, the best first: the lowest bound of a step, then the least work of all kinds.

    One setting is varied at a time from the best so far, in rounds until none improves: not every combination is
    tried. The batch of an update stays as it is, so that all of them train the same. Raises what `estimate` does for
    the given configuration; a neighbour whose mesh the slice cannot have is left out.
    """
    tried: dict[str, tuple[Config, Estimate]] = {}

    def visit(candidate: Config) -> None:
        key = candidate.model_dump_json()
        if key not in tried:
            tried[key] = candidate, estimate(candidate)
            on_tried(*tried[key])

    visit(with_sizes(config, num_devices))
    best: Config | None = None
    while best != (best := min(tried.values(), key=_rank)[0]):
        for neighbours in (
            _remat(best),
            _micro_batches(best, num_devices),
            _meshes(best, architecture, num_devices),
        ):
            for candidate in neighbours:
                with contextlib.suppress(MeshError):  # not every mesh can be laid on the chips of a slice
                    visit(candidate)
    return sorted((found for found in tried.values() if found[1].fits), key=_rank)


def _rank(tried: tuple[Config, Estimate]) -> tuple[float, ...]:
    """What fits before what does not; then by the bound, to three digits, so that nearly equal ones go by the sum."""
    _, estimate = tried
    if not estimate.fits:
        return (1.0, float(estimate.needed))
    bound = max(estimate.seconds.values())
    return (0.0, float(f"{bound:.3g}"), sum(estimate.seconds.values()))


def with_sizes(config: Config, num_devices: int) -> Config:
    """The configuration with `rest` in its mesh replaced by numbers."""
    return _with_mesh(config, config.mesh.shape(num_devices))


def _with_mesh(config: Config, shape: tuple[int, ...]) -> Config:
    mesh = config.mesh.model_copy(update=dict(zip(AXES, shape, strict=True)))
    return config.model_copy(update={"mesh": mesh})


def _remat(config: Config) -> Iterator[Config]:
    for remat in REMAT:
        yield config.model_copy(update={"model": config.model.model_copy(update={"remat": remat})})


def _micro_batches(config: Config, num_devices: int) -> Iterator[Config]:
    now = config.train.num_micro_batches
    for number in (now // 2, now * 2):
        if number < 1 or config.train.batch_size % number or (number > 1 and config.loss.batch_level):
            continue
        train = config.train.model_copy(update={"num_micro_batches": number})
        candidate = config.model_copy(update={"train": train})
        if _is_even(candidate, num_devices):
            yield candidate


def _meshes(config: Config, architecture: DecoderConfig, num_devices: int) -> Iterator[Config]:
    """Meshes whose axes are a factor of two away from those of the configuration."""
    sizes = list(config.mesh.shape(num_devices))
    for grown in range(len(AXES)):
        for shrunk in range(len(AXES)):
            if grown == shrunk or sizes[shrunk] % 2:
                continue
            shape = list(sizes)
            shape[grown] *= 2
            shape[shrunk] //= 2
            candidate = _with_mesh(config, tuple(shape))
            divides = architecture.num_kv_heads % shape[2] == 0 and architecture.vocab_size % shape[2] == 0
            if shape[2] <= MAX_TENSOR and divides and _is_even(candidate, num_devices):
                yield candidate


def _is_even(config: Config, num_devices: int) -> bool:
    try:
        config.check_devices(num_devices)
    except ConfigError:
        return False
    return True
