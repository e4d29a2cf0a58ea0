"""The pairs of a step as the rows that training would make of them, and the FLOPs that they cost at the least."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from jaxalign.config import Config, ConfigError
from jaxalign.data.packing import RowShape
from jaxalign.data.rows import pair_items
from jaxalign.data.shape import RowTooShortError, run_shape
from jaxalign.models.config import DecoderConfig


@dataclass(frozen=True)
class Workload:
    """The shape of the rows of a micro-batch, and totals of a step over all devices.

    tokens counts each prompt once; inputs are those of them that predict something, all but the last of a response;
    seen the (query, key) pairs of attention among inputs, one layer and one head; alone are the same figures for the
    responses after the empty prompt, where the step reads them.
    """

    shape: RowShape
    tokens: int
    inputs: int
    targets: int
    seen: int
    alone: "Workload | None" = None


def assumed_workload(
    config: Config, architecture: DecoderConfig, prompt: int, response: int, groups: int, multiple: int
) -> Workload:
    """A step whose pairs all have a prompt and two responses of so many tokens.

    Raises ConfigError if the rows of the configuration cannot hold them.
    """
    window = architecture.sliding_window
    try:
        workload = _equal_pairs(config, window, prompt, response, groups, multiple)
        if config.adaptive.mi_source == "policy":
            alone = _equal_pairs(config, window, 1, response, groups, multiple)
            workload = dataclasses.replace(workload, alone=alone)
    except RowTooShortError as error:
        raise ConfigError(
            f"{error}; or plan for shorter pairs with --prompt-tokens and --response-tokens"
        ) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return workload


def _equal_pairs(
    config: Config, window: int | None, prompt: int, response: int, groups: int, multiple: int
) -> Workload:
    num_pairs = config.train.batch_size
    lengths = np.full((num_pairs, 3), response, np.int64)
    lengths[:, 0] = prompt
    items = pair_items(lengths, share_prefix=config.rows.share_prefix)
    shape = run_shape(
        items.select(np.arange(num_pairs).reshape(config.train.num_micro_batches, -1)),
        config.rows.layout,
        num_groups=groups,
        longest=int(items.tokens.max()),
        length=config.rows.length,
        multiple=multiple,
    )
    inner = response - 1
    seen = 2 * _causal_pairs(prompt + inner, window) - _causal_pairs(prompt, window)
    return Workload(
        shape=shape,
        tokens=num_pairs * (prompt + 2 * response),
        inputs=num_pairs * (prompt + 2 * inner),
        targets=num_pairs * 2 * response,
        seen=num_pairs * seen,
    )


def _causal_pairs(length: int, window: int | None) -> int:
    """Pairs of a query and a key that it sees, in a sequence."""
    window = min(length, window or length)
    return window * (window + 1) // 2 + (length - window) * window


def required_flops(config: Config, model: DecoderConfig, workload: Workload) -> int:
    """FLOPs of matrix products of a step that no implementation can leave out, over all devices.

    Forward and backward with every prompt once, no layer for the last token of a response, logits of response tokens
    only, nothing recomputed. A frozen base has no gradients of its weights.
    """
    body, attention, head = _forward_flops(model, workload)
    trained = 3 * (body + attention + head)
    if config.model.lora is not None:
        adapters = sum(sum(_linear_shapes(model)[name]) for name in config.model.lora.targets)
        of_adapters = 2 * config.model.lora.rank * adapters * model.num_layers * workload.inputs
        trained = 2 * body + 3 * attention + 2 * head + 3 * of_adapters
    if config.reference.mode in ("online", "adapter_base"):
        trained += body + attention + head
    if workload.alone is not None:
        trained += sum(_forward_flops(model, workload.alone))
    return trained


def _forward_flops(model: DecoderConfig, workload: Workload) -> tuple[int, int, int]:
    """Of the linear layers, of attention, and of the head."""
    weights = sum(rows * columns for rows, columns in _linear_shapes(model).values())
    return (
        2 * weights * model.num_layers * workload.inputs,
        4 * model.num_heads * model.head_dim * model.num_layers * workload.seen,
        2 * model.hidden_size * model.vocab_size * workload.targets,
    )


def _linear_shapes(model: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of the linear layers of one decoder layer, by their names in `lora.targets`."""
    D, F = model.hidden_size, model.intermediate_size
    HE, KE = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    return {
        "query": (D, HE),
        "key": (D, KE),
        "value": (D, KE),
        "out": (HE, D),
        "gate": (D, F),
        "up": (D, F),
        "down": (F, D),
    }
