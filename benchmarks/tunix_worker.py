"""A peer: Tunix's DPOTrainer, one step at a time. `python tunix_worker.py SPEC.json`; started by peer_jax.py.

Runs in an environment of its own, so it imports nothing of jaxalign. The trainer is used as it is: it lays a pair out
as two sequences, all padded to the longest prompt and the longest response of the data, and computes the log-probs of
the reference in every step. With `precomputed` it gets them beforehand, from its own function.
"""

import dataclasses
import importlib.metadata
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from channel import Channel
from flax import nnx
from tunix.models.llama3.model import ModelConfig
from tunix.models.llama3.params import create_model_from_safe_tensors
from tunix.sft.dpo import dpo_trainer

Batch = dict[str, np.ndarray]


class Trainer(dpo_trainer.DPOTrainer):
    """Keeps the figures of the last step, and takes the reference's log-probs where they are given."""

    figures: dict[str, float]
    references: dict[bytes, tuple[Any, Any]] | None = None

    def _prepare_inputs(self, training_input: Any) -> Any:
        example = super()._prepare_inputs(training_input)
        if self.references is None:
            return example
        chosen, rejected = self.references[_key(example.input_ids)]
        return dataclasses.replace(example, ref_chosen_logps=chosen, ref_rejected_logps=rejected)

    def precompute(self, batches: list[Batch]) -> None:
        references = {}
        for batch in batches:
            x = super()._prepare_inputs(batch)
            masks = (x.positions, x.attention_mask, x.logits_to_keep, x.completion_mask)
            references[_key(x.input_ids)] = dpo_trainer.compute_logps(self.model, x.input_ids, *masks)
        self.references = references

    def _post_process_train_step(self, aux: Any) -> None:
        super()._post_process_train_step(aux)
        self.figures = {
            "loss": float(self._buffered_train_metrics.losses[-1]),
            "logps/chosen": float(aux["log_probs/chosen"]),
            "logps/rejected": float(aux["log_probs/rejected"]),
        }


def _key(input_ids: Any) -> bytes:
    return np.asarray(input_ids).tobytes()


def main() -> None:
    channel = Channel()
    spec = json.loads(Path(sys.argv[1]).read_text())
    batches = _batches(spec)
    model = _load(spec["model"])
    trainer = Trainer(
        model=model,
        ref_model=None if spec["precomputed"] else _load(spec["model"]),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(spec["learning_rate"])),
        training_config=dpo_trainer.DPOTrainingConfig(
            beta=spec["beta"],
            eval_every_n_steps=10**9,
            gradient_accumulation_steps=spec["accumulation"] if spec["accumulation"] > 1 else None,
        ),
    )
    if spec["precomputed"]:
        trainer.precompute(batches)
    packages = ("google-tunix", "jax", "flax")
    channel.begin(versions={name: importlib.metadata.version(name) for name in packages})
    trainer.train(_in_turn(channel, trainer, batches, spec["accumulation"]))
    channel.end()


def _in_turn(channel: Channel, trainer: Trainer, batches: list[Batch], accumulation: int) -> Iterator[Batch]:
    """The micro-batches of a step whenever one is asked for, and an answer when it is done."""
    for step in range(len(batches) // accumulation):
        if not channel.next_step():
            return
        start = time.perf_counter(), time.process_time()
        figures = []
        for batch in batches[step * accumulation :][:accumulation]:
            yield batch  # the trainer comes back for the next one when it has made this step
            jax.block_until_ready(jax.tree.leaves(nnx.state(trainer.model)))
            figures.append(trainer.figures)
        channel.send(
            seconds=time.perf_counter() - start[0],
            cpu_seconds=time.process_time() - start[1],
            **{name: float(np.mean([part[name] for part in figures])) for name in figures[0]},
        )


def _load(path: str) -> nnx.Module:
    config = json.loads((Path(path) / "config.json").read_text())
    sizes = ModelConfig(
        num_layers=config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        embed_dim=config["hidden_size"],
        hidden_dim=config["intermediate_size"],
        num_heads=config["num_attention_heads"],
        head_dim=config["head_dim"],
        num_kv_heads=config["num_key_value_heads"],
        rope_theta=config["rope_theta"],
        norm_eps=config["rms_norm_eps"],
        weight_tying=config["tie_word_embeddings"],
    )
    return create_model_from_safe_tensors(path, sizes, dtype=jax.numpy.float32)


def _batches(spec: dict[str, Any]) -> list[Batch]:
    """Micro-batches in one shape: prompts padded on the left, responses on the right."""
    pairs, size = spec["pairs"], spec["batch_size"] // spec["accumulation"]
    batches = []
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        batch: Batch = {}
        for name, length in spec["longest"].items():
            ids, mask = np.zeros((len(part), length), np.int32), np.zeros((len(part), length), np.int32)
            for i, tokens in enumerate(pair[name] for pair in part):
                place = slice(length - len(tokens), None) if name == "prompt_ids" else slice(len(tokens))
                ids[i, place], mask[i, place] = tokens, 1
            batch |= {name: ids, name.replace("_ids", "_mask"): mask}
        batches.append(batch)
    return batches


if __name__ == "__main__":
    main()
