"""The train step of a configuration with random weights and random pairs: no files, no tokenizer, no reference pass."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from workload import EOS, PAD, Llama, make_pairs

from jaxalign.batch import PairBatch
from jaxalign.config import Config, parse_config
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import PairLoader
from jaxalign.models.config import decoder_config_from_hf
from jaxalign.parallel import batch_sharding, make_mesh, num_groups, put_global, shardings_of
from jaxalign.run.program import Program, abstract_batch, build_program


def make_config(num_pairs: int, num_categories: int, **sections: Any) -> Config:
    """A step of the whole method over so many pairs; `sections` are laid over it one level deep."""
    settings: dict[str, Any] = {
        "model": {"path": "random", "dtype": "float32", "remat": "none"},
        "data": {
            "train": [{"format": "plain", "path": "random"}],
            "categories": [f"category {k}" for k in range(num_categories)],
        },
        "loss": {"name": "cat_b_dpo", "beta": 0.1},
        "optimizer": {"learning_rate": 1e-4, "schedule": "constant"},
        "train": {"batch_size": num_pairs, "num_steps": 1},
        "mesh": {"data": 1},
    }
    merged = {name: {**settings.get(name, {}), **sections.get(name, {})} for name in [*settings, *sections]}
    return parse_config(merged, "the benchmark")


def make_dataset(lengths: np.ndarray, vocabulary: int, names: tuple[str, ...]) -> TokenizedDataset:
    """Random pairs of these lengths [n, 3], each in one category or two, the rejected response unsafe."""
    pairs, rng, n = make_pairs(lengths, vocabulary), np.random.default_rng(1), len(lengths)

    def ids(name: str) -> tuple[np.ndarray, ...]:
        return tuple(np.array(pair[name], np.int32) for pair in pairs)

    categories = np.zeros((n, len(names)), np.float32)
    categories[np.arange(n)[:, None], rng.integers(0, len(names), (n, 2))] = 1.0
    return TokenizedDataset(
        prompt_ids=ids("prompt_ids"),
        chosen_ids=ids("chosen_ids"),
        rejected_ids=ids("rejected_ids"),
        categories=categories,
        chosen_unsafe=np.zeros(n, np.float32),
        rejected_unsafe=np.ones(n, np.float32),
        category_names=names,
        pad_id=PAD,
        empty_prompt_ids=np.array([EOS], np.int32),
        origins=tuple(f"pair {i}" for i in range(n)),
        num_cut=np.zeros((n, 3), np.int32),
        skipped=(),
        reference_logps=np.zeros((n, 2), np.float32),
        mi=np.ones((n, 2), np.float32),
    )


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """A program and the one batch that it steps over."""

    program: Program
    loader: PairLoader
    abstract: PairBatch

    def compile(self) -> jax.stages.Compiled:
        """The step for this machine; nothing is allocated."""
        return self.program.lower(self.abstract).compile()

    def arguments(self) -> tuple[Any, Any, PairBatch]:
        """State, frozen parameters and batch on the devices."""
        program = self.program
        base = _random_like(program.abstract_base)
        lora = program.policy.decoder.lora
        trained = base if lora is None else program.policy.decoder.init_lora(jax.random.key(0))
        shardings = shardings_of(program.abstract_state)
        state = jax.jit(program.make_state, out_shardings=shardings)(trained)
        batch = put_global(self.loader.batch(0), batch_sharding(program.mesh))
        return state, {} if lora is None else {"base": base}, batch


def make_synthetic(config: Config, llama: Llama, lengths: np.ndarray) -> Synthetic:
    """Everything for one step over these pairs, on as many devices as there are."""
    mesh = make_mesh(config.mesh)
    program = build_program(config, decoder_config_from_hf(llama.hf_config()), mesh, num_steps=1)
    loader = PairLoader(
        make_dataset(lengths, llama.vocabulary, config.data.category_names),
        batch_size=config.train.batch_size,
        rows=config.rows,
        num_micro_batches=config.train.num_micro_batches,
        num_groups=num_groups(mesh),
        num_steps=1,
    )
    return Synthetic(program, loader, abstract_batch(config, loader.shape, loader.alone_shape, mesh))


def _random_like(shapes: Any) -> Any:
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    made = [
        jnp.ones(x.shape, x.dtype) if len(x.shape) < 2 else 0.02 * jax.random.normal(key, x.shape, x.dtype)
        for x, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, made)
