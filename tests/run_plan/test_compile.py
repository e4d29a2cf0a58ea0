"""What the compiler says of a program for which it finds no room."""

import dataclasses

import jax
import pytest

from jaxalign.run.plan.compile import TooLargeError, compile_step

HBM = {
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 37.25G of 15.75G hbm. Exceeded hbm capacity by "
    "21.50G.": 37.25 * 2**30,
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (512.00M) exceeds "
    "available HBM (15.75G).": 512 * 2**20,
}
OTHERS = (
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20.00M of 16.00M vmem. Exceeded vmem capacity by "
    "4.00M.",
    "RESOURCE_EXHAUSTED: Scoped allocation with size 18.24M and limit 16.00M (16.00M) exceeded scoped vmem limit",
    "INTERNAL: Used 1.00G of 2.00G hbm",
)


@dataclasses.dataclass(frozen=True)
class Refused:
    """A lowered program that the compiler refuses with a message."""

    message: str

    def lower(self, batch):
        return self

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.message)


@pytest.mark.parametrize("message", HBM)
def test_lack_of_main_memory_says_how_much_is_needed(message):
    with pytest.raises(TooLargeError, match="bytes per device are needed") as raised:
        compile_step(Refused(message), None)
    assert raised.value.needed == HBM[message]


@pytest.mark.parametrize("message", OTHERS)
def test_other_errors_are_not_taken_for_a_lack_of_main_memory(message):
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"vmem|INTERNAL"):
        compile_step(Refused(message), None)
