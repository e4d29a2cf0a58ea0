"""Reading and exporting with parameters that are spread over several processes."""

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxalign.hf.read import open_checkpoint
from jaxalign.hf.write import export_model
from jaxalign.models.functional import build_decoder

ROOT = Path(__file__).resolve().parents[2]
COPY = """
    import sys
    import jax
    from jax.sharding import NamedSharding, PartitionSpec
    from jaxalign.hf.read import open_checkpoint
    from jaxalign.hf.write import export_model
    from jaxalign.models.functional import build_decoder

    address, process, source, target = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(address, num_processes=2, process_id=int(process))
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    checkpoint = open_checkpoint(source)
    decoder = build_decoder(checkpoint.config, compute_dtype="float32", param_dtype="float32")
    spread = lambda dims: NamedSharding(mesh, PartitionSpec(*("fsdp" if d == "model" else None for d in dims)))
    shardings = jax.tree.map(spread, decoder.logical_dims(), is_leaf=lambda dims: isinstance(dims, tuple))
    params = checkpoint.load_params(decoder.abstract_params(), shardings, "float32")
    assert not params["embedding"].is_fully_addressable
    export_model(target, hf_config=checkpoint.hf_config, params=params)
"""


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_two_processes_export_the_bytes_of_one(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tiny_checkpoint("llama")
    checkpoint = open_checkpoint(source)
    decoder = build_decoder(checkpoint.config, compute_dtype="float32", param_dtype="float32")
    params = checkpoint.load_params(decoder.abstract_params(), None, "float32")
    export_model(tmp_path / "one", hf_config=checkpoint.hf_config, params=params)

    address = f"127.0.0.1:{_free_port()}"
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(COPY),
                address,
                str(i),
                str(source),
                str(tmp_path / "two"),
            ],
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
