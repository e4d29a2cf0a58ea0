"""Reading directories: what is refused and how it is said, and that shards equal the whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from jaxalign.hf.checkpoint import CheckpointError, tokenizer_fingerprint
from jaxalign.hf.mapping import LLAMA_TENSORS, TensorMismatchError, tensor_places
from jaxalign.hf.read import SafetensorsSource, load_tokenizer, open_checkpoint
from jaxalign.models.functional import DecoderFns, build_decoder

AXES = {"heads": "tensor", "kv_heads": "tensor", "ffn": "tensor", "vocab": "tensor", "model": "fsdp"}


@pytest.fixture
def checkpoint_dir(tmp_path: Path, tiny_checkpoint: Callable[[str], Path]) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "checkpoint"))


def _decoder(directory: Path) -> DecoderFns:
    config = open_checkpoint(directory).config
    return build_decoder(config, compute_dtype="float32", param_dtype="float32")


def _load(directory: Path, dtype: Any = "float32") -> Any:
    return open_checkpoint(directory).load_params(_decoder(directory).abstract_params(), None, dtype)


def _rewrite(directory: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("shape", [(8, 1), (1, 2), (4, 2), (2, 2)])
@pytest.mark.parametrize("family", ["llama", "llama_tied"])
def test_sharded_reading_equals_reading_the_whole(
    shape: tuple[int, int], family: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    mesh = jax.make_mesh(
        (8 // (shape[0] * shape[1]), *shape),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )
    decoder = _decoder(tiny_checkpoint(family))
    shardings = jax.tree.map(
        lambda dims: NamedSharding(mesh, PartitionSpec(*(AXES.get(dim) for dim in dims))),
        decoder.logical_dims(),
        is_leaf=lambda dims: isinstance(dims, tuple),
    )
    checkpoint = open_checkpoint(tiny_checkpoint(family))
    sharded = checkpoint.load_params(decoder.abstract_params(), shardings, "float32")
    assert jax.tree.map(lambda x: x.sharding, sharded) == shardings
    chex.assert_trees_all_equal(jax.device_get(sharded), jax.device_get(_load(tiny_checkpoint(family))))


def test_only_the_owned_slice_of_a_tensor_is_read(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tiny_checkpoint("llama")
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    decoder = _decoder(directory)
    shardings = jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec()), decoder.abstract_params())
    shardings["layers"]["mlp"]["up"]["kernel"] = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    reads: list[tuple[str, Any]] = []
    read = SafetensorsSource.read

    def recorded(self: SafetensorsSource, name: str, index: Any) -> np.ndarray:
        reads.append((name, index))
        return read(self, name, index)

    monkeypatch.setattr(SafetensorsSource, "read", recorded)
    open_checkpoint(directory).load_params(decoder.abstract_params(), shardings, "float32")
    of_up = {index for name, index in map(_plain, reads) if name == "model.layers.1.mlp.up_proj.weight"}
    assert of_up == {((0, 48), (4 * i, 4 * i + 4)) for i in range(8)}
    # A replicated tensor is read once, not once per device.
    assert sum(name == "model.layers.1.mlp.gate_proj.weight" for name, _ in reads) == 1


def _plain(read: tuple[str, tuple[slice, ...]]) -> tuple[str, tuple[tuple[int, int], ...]]:
    return read[0], tuple((part.start, part.stop) for part in read[1])


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_every_stored_type_becomes_the_parameter_type(stored: Any, checkpoint_dir: Path) -> None:
    exact = jax.device_get(_load(checkpoint_dir))
    _rewrite(checkpoint_dir, lambda t: t.update({name: x.astype(stored) for name, x in t.items()}))
    rounded = jax.tree.map(lambda x: x.astype(stored), exact)
    for dtype in (np.float32, ml_dtypes.bfloat16):
        expected = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), rounded)
        chex.assert_trees_all_equal(jax.device_get(_load(checkpoint_dir, dtype)), expected)


def test_several_files_with_an_index_are_one_checkpoint(checkpoint_dir: Path) -> None:
    whole = jax.device_get(_load(checkpoint_dir))
    tensors = load_file(checkpoint_dir / "model.safetensors")
    weight_map = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, checkpoint_dir / file)
    (checkpoint_dir / "model.safetensors").unlink()
    index = checkpoint_dir / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    chex.assert_trees_all_equal(jax.device_get(_load(checkpoint_dir)), whole)

    (checkpoint_dir / "part-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index names files that are missing: part-1\.safetensors"):
        open_checkpoint(checkpoint_dir)
    index.write_text(json.dumps({"weight_map": {"x": "../x.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"'\.\./x\.safetensors', which is outside the directory"):
        open_checkpoint(checkpoint_dir)


def test_all_tensors_that_do_not_fit_are_in_one_error(checkpoint_dir: Path) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.9.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
        tensors["model.norm.weight"] = np.zeros(31, np.float32)

    _rewrite(checkpoint_dir, spoil)
    with pytest.raises(TensorMismatchError) as caught:
        _load(checkpoint_dir)
    for part in (
        "(3 tensors)",
        "missing model.layers.1.mlp.up_proj.weight (48, 32)",
        "unexpected model.layers.9.mlp.up_proj.weight (2, 2)",
        "model.norm.weight has shape (31,), expected (32,)",
    ):
        assert part in str(caught.value)


def test_parameters_without_a_name_are_all_listed() -> None:
    extra = {"adapter": {"gain": np.zeros(1)}, "bias": np.zeros(2)}
    with pytest.raises(TensorMismatchError, match="without a Hugging Face name: adapter/gain, bias"):
        tensor_places(LLAMA_TENSORS, extra)


def test_rotary_buffers_of_old_checkpoints_are_accepted(checkpoint_dir: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    before = jax.device_get(_load(checkpoint_dir))
    _rewrite(checkpoint_dir, lambda tensors: tensors.update(buffer))
    chex.assert_trees_all_equal(jax.device_get(_load(checkpoint_dir)), before)


def test_stored_copy_of_a_tied_head_must_be_a_copy(
    tmp_path: Path, tiny_checkpoint: Callable[[str], Path]
) -> None:
    directory = Path(shutil.copytree(tiny_checkpoint("llama_tied"), tmp_path / "tied"))
    embedding = "model.embed_tokens.weight"
    _rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding]}))
    _load(directory)
    _rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding] + 1}))
    with pytest.raises(TensorMismatchError, match=r"lm_head\.weight differs from .* set it to false"):
        _load(directory)


def test_pickled_weights_are_refused_with_the_remedy(checkpoint_dir: Path) -> None:
    (checkpoint_dir / "model.safetensors").rename(checkpoint_dir / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*refused.*save_pretrained"):
        open_checkpoint(checkpoint_dir)


def _break_config(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def _only_adapter(directory: Path) -> None:
    (directory / "config.json").rename(directory / "adapter_config.json")


def _no_object(directory: Path) -> None:
    (directory / "config.json").write_text("[]")


def _no_weight_map(directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_text('{"metadata": {}}')


def _truncate(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, r"neither a directory nor a \.gguf file.*hf download"),
        (_break_config, r"config\.json is not valid JSON"),
        (_no_object, r"config\.json holds \[\], expected a JSON object"),
        (_no_weight_map, r"index\.json: weight_map is None, expected a mapping from tensor names"),
        (_only_adapter, "has no config.json.*give its base model"),
        (_truncate, "not a whole safetensors file.*fetch it again"),
        (lambda d: (d / "model.safetensors").unlink(), r"neither model\.safetensors nor"),
        (lambda d: _rewrite(d, lambda t: t.update(x=np.zeros(2, np.int8))), "x is stored as I8; expected"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(
    spoil: Callable[[Path], Any], message: str, checkpoint_dir: Path
) -> None:
    spoil(checkpoint_dir)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(checkpoint_dir)


def test_missing_tokenizer_is_an_error_with_the_remedy(checkpoint_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="copy the tokenizer files"):
        open_checkpoint(checkpoint_dir).load_tokenizer()


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_broken_tokenizer_is_an_error_with_the_remedy(tmp_path: Path, content: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: transformers cannot read its tokenizer .*fetch"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="absent is no directory; give one with the tokenizer files"):
        load_tokenizer(tmp_path / "absent")


def _one_weight(directory: Path) -> None:
    _rewrite(directory, lambda tensors: tensors["model.norm.weight"].__setitem__(0, 7.0))


def _one_setting(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))


@pytest.mark.parametrize("change", [_one_weight, _one_setting])
def test_fingerprint_follows_weights_and_configuration(
    change: Callable[[Path], None], checkpoint_dir: Path
) -> None:
    before = open_checkpoint(checkpoint_dir).fingerprint()
    assert open_checkpoint(checkpoint_dir).fingerprint() == before
    change(checkpoint_dir)
    assert open_checkpoint(checkpoint_dir).fingerprint() != before


def test_tokenizer_fingerprint_ignores_calls_and_follows_the_template(tiny_tokenizer: Any) -> None:
    before = tokenizer_fingerprint(tiny_tokenizer)
    tiny_tokenizer(["a", "b c"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tiny_tokenizer) == before
    tiny_tokenizer.chat_template += " "
    assert tokenizer_fingerprint(tiny_tokenizer) != before
