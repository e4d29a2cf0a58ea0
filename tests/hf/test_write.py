"""Exports: that transformers and peft load them with the same logits, and that nothing is ever lost."""

import json
import logging
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from jaxalign.hf.checkpoint import Checkpoint
from jaxalign.hf.gather import contiguous
from jaxalign.hf.mapping import TensorMismatchError
from jaxalign.hf.read import open_checkpoint
from jaxalign.hf.staging import ExportError
from jaxalign.hf.write import export_adapter, export_model, parse_size
from jaxalign.models.config import DecoderConfig, decoder_config_to_hf
from jaxalign.models.functional import DecoderFns, build_decoder
from jaxalign.models.lora import LoraConfig, merge_lora

LORA = LoraConfig(rank=3, alpha=6.0, targets=("query", "value", "out", "gate", "down"))
Opened = tuple[Checkpoint, DecoderFns, Any]


def _open(directory: Path, lora: LoraConfig | None = None) -> Opened:
    checkpoint = open_checkpoint(directory)
    decoder = build_decoder(checkpoint.config, compute_dtype="float32", param_dtype="float32", lora=lora)
    return checkpoint, decoder, checkpoint.load_params(decoder.abstract_params(), None, "float32")


@pytest.fixture
def opened(tiny_checkpoint: Callable[[str], Path]) -> Opened:
    return _open(tiny_checkpoint("llama_tied"), LORA)


@pytest.fixture
def adapter(opened: Opened) -> Any:
    """Adapters with an effect."""
    zero = opened[1].init_lora(jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(1), x.shape), zero)


def _from_pretrained(directory: Path, caplog: pytest.LogCaptureFixture) -> Any:
    """What transformers loads, if it says nothing about it."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True
        )
    transformers_logging.disable_propagation()
    assert not [record.getMessage() for record in caplog.records]
    assert not any(info.values()), info
    return model


def test_transformers_loads_an_export_without_a_word_and_with_the_same_logits(
    family: str,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    sequences: tuple[np.ndarray, np.ndarray],
    torch_logits: Callable[..., np.ndarray],
    our_logits: Callable[..., np.ndarray],
) -> None:
    checkpoint, decoder, params = _open(tiny_checkpoint(family))
    export_model(tmp_path / "out", hf_config=checkpoint.hf_config, params=params, dtype="f32")
    theirs = torch_logits(_from_pretrained(tmp_path / "out", caplog), sequences[0])
    ours = our_logits(decoder, params, None, sequences[0])
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_reading_an_export_gives_back_every_bit(
    family: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint, _, params = _open(tiny_checkpoint(family))
    export_model(tmp_path / "out", hf_config=checkpoint.hf_config, params=params, dtype="f32")
    original = load_file(tiny_checkpoint(family) / "model.safetensors")
    chex.assert_trees_all_equal(load_file(tmp_path / "out" / "model.safetensors"), original)
    again, _, read = _open(tmp_path / "out")
    assert again.config == checkpoint.config
    chex.assert_trees_all_equal(jax.device_get(read), jax.device_get(params))


def test_merged_export_computes_what_the_adapted_model_does(
    opened: Opened,
    adapter: Any,
    tmp_path: Path,
    sequences: tuple[np.ndarray, np.ndarray],
    torch_logits: Callable[..., np.ndarray],
    our_logits: Callable[..., np.ndarray],
) -> None:
    checkpoint, decoder, params = opened
    options: Any = {"params": params, "lora_params": adapter, "lora": LORA, "dtype": "f32"}
    export_model(tmp_path / "out", hf_config=checkpoint.hf_config, **options)
    theirs = torch_logits(tmp_path / "out", sequences[0])
    ours = our_logits(decoder, params, adapter, sequences[0])
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    assert np.abs(ours - our_logits(decoder, params, None, sequences[0])).max() > 0.1
    read = _open(tmp_path / "out")[2]
    chex.assert_trees_all_close(read, merge_lora(params, adapter, LORA), atol=1e-6)


def test_peft_loads_an_exported_adapter_with_the_same_logits(
    opened: Opened,
    adapter: Any,
    tmp_path: Path,
    tiny_checkpoint: Callable[[str], Path],
    sequences: tuple[np.ndarray, np.ndarray],
    torch_logits: Callable[..., np.ndarray],
    our_logits: Callable[..., np.ndarray],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from peft import PeftModel

    checkpoint, decoder, params = opened
    base = tiny_checkpoint("llama_tied")
    export_adapter(
        tmp_path / "adapter",
        hf_config=checkpoint.hf_config,
        lora_params=adapter,
        lora=LORA,
        base_model=str(base),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # peft warns about keys that are missing
        # peft reads an attribute that transformers is about to drop; not about the files.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        model = PeftModel.from_pretrained(_from_pretrained(base, caplog), tmp_path / "adapter")
    theirs = torch_logits(model, sequences[0])
    ours = our_logits(decoder, params, adapter, sequences[0])
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    names = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert names == {name.replace(".default", "") for name in model.state_dict() if ".lora_" in name}


def test_transposed_view_is_written_as_its_values(tmp_path: Path) -> None:
    """safetensors writes the bytes of a view in the order of its base array."""
    from safetensors.numpy import save_file

    view = np.arange(6, dtype=np.float32).reshape(2, 3)
    file = tmp_path / "x.safetensors"
    save_file({"x": contiguous(view, transposed=True)}, file)
    np.testing.assert_array_equal(load_file(file)["x"], view.T)
    assert contiguous(view, transposed=True).flags.c_contiguous


def test_small_files_make_an_index_and_the_same_model(
    opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, _, params = opened
    limit = 9_000
    options: Any = {"hf_config": checkpoint.hf_config, "params": params, "dtype": "f32"}
    export_model(tmp_path / "out", max_shard_size=limit, **options)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(sum(t.nbytes for t in load_file(file).values()) <= limit for file in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    chex.assert_trees_all_equal(jax.device_get(_open(tmp_path / "out")[2]), jax.device_get(params))
    _from_pretrained(tmp_path / "out", caplog)


def test_bf16_export_is_the_rounded_model(opened: Opened, tmp_path: Path) -> None:
    checkpoint, _, params = opened
    export_model(tmp_path / "out", hf_config=checkpoint.hf_config, params=params)
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), params)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {np.dtype(ml_dtypes.bfloat16)}
    np.testing.assert_array_equal(written["model.embed_tokens.weight"], rounded["embedding"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_sharded_parameters_export_the_same_bytes(opened: Opened, adapter: Any, tmp_path: Path) -> None:
    checkpoint, _, params = opened
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    matrix = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
    vector = NamedSharding(mesh, PartitionSpec())
    spread = jax.tree.map(lambda x: jax.device_put(x, matrix if x.ndim == 3 else vector), params)
    spread["embedding"] = jax.device_put(params["embedding"], NamedSharding(mesh, PartitionSpec("tensor")))
    options: Any = {"hf_config": checkpoint.hf_config, "lora_params": adapter, "lora": LORA}
    export_model(tmp_path / "one", params=params, **options)
    export_model(tmp_path / "many", params=spread, **options)
    one, many = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "many"))
    assert one == many


def test_tokenizer_template_stop_ids_and_card_travel_along(
    opened: Opened, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    from transformers import GenerationConfig

    checkpoint, _, params = opened
    options: Any = {"hf_config": checkpoint.hf_config, "params": params, "tokenizer": tiny_tokenizer}
    export_model(tmp_path / "out", generation_config={"eos_token_id": [7]}, model_card="# Card", **options)
    read = open_checkpoint(tmp_path / "out")
    assert read.generation_config is not None
    assert read.generation_config["eos_token_id"] == [7, tiny_tokenizer.eos_token_id]
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [7, 2]
    messages = [{"role": "user", "content": "hi"}]
    assert read.load_tokenizer().apply_chat_template(messages, tokenize=False) == "<s>user:hi</s>"
    assert read.tokenizer_fingerprint() == open_checkpoint(tmp_path / "out").tokenizer_fingerprint()
    assert (tmp_path / "out" / "README.md").read_text() == "# Card"


def test_parameters_must_be_those_of_the_config(opened: Opened, tmp_path: Path) -> None:
    checkpoint, _, params = opened
    untied = checkpoint.hf_config | {"tie_word_embeddings": False}
    with pytest.raises(TensorMismatchError, match=r"model to export.*\n  missing lm_head\.weight"):
        export_model(tmp_path / "out", hf_config=untied, params=params)
    with pytest.raises(TensorMismatchError, match="without a Hugging Face name: gain"):
        export_model(tmp_path / "out", hf_config=checkpoint.hf_config, params=params | {"gain": np.ones(1)})
    assert not (tmp_path / "out").exists()


def test_adapters_must_belong_to_the_model(opened: Opened, adapter: Any, tmp_path: Path) -> None:
    checkpoint, _, params = opened
    options: Any = {"hf_config": checkpoint.hf_config, "params": params}
    with pytest.raises(ValueError, match="lora_params and lora belong together"):
        export_model(tmp_path / "out", lora_params=adapter, **options)
    stray = {"layers": {"router": adapter["layers"]["mlp"]["gate"]}}
    with pytest.raises(
        TensorMismatchError, match="does not have: layers/router/lora_a, layers/router/lora_b"
    ):
        export_model(tmp_path / "out", lora_params=stray, lora=LORA, **options)


@pytest.mark.parametrize(
    ("size", "num_bytes"), [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("20K", 20_000), (77, 77)]
)
def test_sizes_are_read_in_powers_of_a_thousand(size: str | int, num_bytes: int) -> None:
    assert parse_size(size) == num_bytes


@pytest.mark.parametrize("size", ["5 gigs", "", "-1GB", 0, "0MB"])
def test_sizes_that_are_none_are_refused(size: str | int) -> None:
    with pytest.raises(ExportError, match="expected a size such as 5GB"):
        parse_size(size)


def test_host_holds_one_file_of_the_export_at_a_time(tmp_path: Path) -> None:
    config = DecoderConfig(64, 128, 512, num_layers=16, num_heads=4, num_kv_heads=4, head_dim=32)
    decoder = build_decoder(config, compute_dtype="float32", param_dtype="float32")
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), decoder.abstract_params())
    whole = sum(x.nbytes for x in jax.tree.leaves(params))
    options: Any = {"hf_config": decoder_config_to_hf(config), "params": params, "dtype": "f32"}
    export_model(tmp_path / "first", **options)  # imports and traces on the way are not counted

    def peak(directory: Path, size: int) -> int:
        tracemalloc.start()
        export_model(directory, max_shard_size=size, **options)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(tmp_path / "one", whole) > whole
    assert peak(tmp_path / "many", whole // 16) < whole / 4
