"""The memory of a device by what it is for: from shapes where they say it, else from the compiler."""

from typing import Any

import jax

from jaxalign.parallel import device_bytes, shardings_of
from jaxalign.run.program import Program
from jaxalign.training.state import widened


def memory_before(program: Program, batch: Any) -> dict[str, int]:
    """Bytes of what is there before the step, exact from shapes and shardings."""
    state = program.abstract_state
    parts = {
        "trained parameters": state.params,
        "optimizer state": state.opt_state,
        "frozen parameters": program.abstract_frozen,
        "batch": batch,
    }
    return {name: device_bytes(tree, shardings_of(tree)) for name, tree in parts.items()}


def memory_of_program(program: Program, before: dict[str, int], analysis: Any) -> dict[str, int]:
    """All that a compiled program occupies; `analysis` is its `memory_analysis()`.

    The compiler does not say which of its temporaries are gradients: those of the trained parameters, in float32, are
    taken to be among them.
    """
    params = program.abstract_state.params
    float32 = device_bytes(jax.eval_shape(widened, params), shardings_of(params))
    gradients = min(float32, analysis.temp_size_in_bytes)
    # Arrays are padded to tiles, the state holds a few numbers more, and some results reuse no argument.
    arguments = analysis.argument_size_in_bytes - sum(before.values())
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return before | {
        "gradients": gradients,
        "activations and other temporaries": analysis.temp_size_in_bytes - gradients,
        "padding and other results": arguments + results,
        "program": analysis.generated_code_size_in_bytes,
    }
