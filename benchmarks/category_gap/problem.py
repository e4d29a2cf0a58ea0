"""The problem of one seed: a pre-trained model, its preference data in every view, and the prompts that judge it.

Everything but the world itself depends on the seed. Problems are made many at a time and kept in a folder.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from data import Design, Preferences, draw_prompts, evaluation_prompts, make_pairs, view
from lanes import in_chunks, over_lanes
from model import DECODER, Asked, Params, asked, logps_alone, pretrain, response_logps, sample_answers
from safetensors.numpy import load_file, save_file
from sources import code_fingerprint
from world import BOS, PAD, Corpus, K, general_prompts, harms, sample_corpus, topics

from jaxalign.files import replacing
from jaxalign.training.reference import mutual_information

VIEWS = ("safedpo", "better", "safer")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything a problem has; per_topic counts are of unsafe and of benign prompts each."""

    corpus: Corpus = dataclasses.field(default_factory=Corpus)
    pretrain_steps: int = 600
    samples: int = 6
    heldout: int = 768
    test_per_topic: int = 96
    general: int = 384
    seen_per_topic: int = 16
    probe_per_topic: int = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs on the device, padded to one number N for all seeds: shapes as in `data.Preferences`.

    reference_logps, mi [N, 2]; num_pairs [] int32 are real.
    """

    prompts: jax.Array
    responses: jax.Array
    unsafe: jax.Array
    categories: jax.Array
    reference_logps: jax.Array
    mi: jax.Array
    num_pairs: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """pairs by view; `unsafe`, `benign` and `general` prompts to test on, `seen` unsafe ones of the training data,
    topic after topic; `probe`, unsafe ones for probes during training, in no other set.
    """

    seed: jax.Array
    params: Params
    pairs: dict[str, Pairs]
    heldout: Pairs
    unsafe: Asked
    benign: Asked
    general: Asked
    seen: Asked
    probe: Asked


def load_problems(
    folder: Path, seeds: Sequence[int], design: Design, sizes: Sizes, *, width: int
) -> dict[int, Problem]:
    """The problems by seed, from `folder` where they are there, else made, `width` at a time, and kept there."""
    code = code_fingerprint("world", "data", "model", "problem")
    ingredients = {"design": dataclasses.asdict(design), "sizes": dataclasses.asdict(sizes), "code": code}
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:12]
    paths = {seed: folder / f"problem-{key}-{seed}.safetensors" for seed in seeds}
    missing = [seed for seed in seeds if not paths[seed].exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(missing), width):
        chunk = missing[start : start + width]
        for seed, problem in zip(chunk, make_problems(chunk, design, sizes, width=width), strict=True):
            _save(paths[seed], problem)
    return {seed: _load(path) for seed, path in paths.items()}


def make_problems(seeds: Sequence[int], design: Design, sizes: Sizes, *, width: int) -> list[Problem]:
    """The problems of some seeds, in lanes of `width`."""
    rngs = [np.random.default_rng([seed, 0]) for seed in seeds]
    keys = [jax.random.key_data(jax.random.key(seed)) for seed in seeds]
    corpora = [sample_corpus(rng, sizes.corpus) for rng in rngs]
    models = _in_lanes(_pretrained(sizes), list(zip(keys, corpora, strict=True)), width)
    prompts = [np.concatenate([draw_prompts(rng, design), draw_prompts(rng, design)]) for rng in rngs]
    samples = _in_lanes(_samples(sizes), list(zip(models, prompts, keys, strict=True)), width)
    made = [_preferences(*given, design, sizes) for given in zip(rngs, prompts, samples, strict=True)]
    names = [*VIEWS, "heldout"]
    figures = {}
    for name in names:
        lanes = [(m, p[name].prompts, p[name].responses) for m, p in zip(models, made, strict=True)]
        figures[name] = _in_lanes(_reference, lanes, width)
    problems = []
    for i, seed in enumerate(seeds):
        pairs = {name: _with_reference(made[i][name], *figures[name][i]) for name in names}
        heldout = pairs.pop("heldout")
        questions = _questions(rngs[i], prompts[i][: design.num_prompts], sizes)
        problems.append(Problem(np.int32(seed), models[i], pairs, heldout, **questions))
    return problems


def _in_lanes(run: Any, lanes: list[Any], width: int) -> list[Any]:
    return [result for chunk in in_chunks(over_lanes(run), lanes, width) for result in chunk]


def _pretrained(sizes: Sizes) -> Any:
    def run(key: jax.Array, corpus: jax.Array) -> Params:
        return pretrain(jax.random.wrap_key_data(key), corpus, num_steps=sizes.pretrain_steps)[0]

    return run


def _samples(sizes: Sizes) -> Any:
    def run(params: Params, prompts: jax.Array, key: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(key), 1), sizes.samples)
        return jnp.stack([sample_answers(params, prompts, keys[d]) for d in range(sizes.samples)], axis=1)

    return run


def _reference(params: Params, prompts: jax.Array, responses: jax.Array) -> tuple[jax.Array, jax.Array]:
    return response_logps(params, prompts, responses), logps_alone(params, responses)


def _preferences(
    rng: np.random.Generator, prompts: np.ndarray, samples: np.ndarray, design: Design, sizes: Sizes
) -> dict[str, Preferences]:
    """Every view of the first half of the prompts; `heldout`, a choice of the pairs of the other half; all padded."""
    half = design.num_prompts
    train = make_pairs(rng, design, prompts[:half], samples[:half])
    other = view(make_pairs(rng, design, prompts[half:], samples[half:]), "safedpo")
    chosen = rng.permutation(len(other))[: sizes.heldout]
    heldout = Preferences(**{name: x[chosen] for name, x in vars(other).items()})
    made = {name: _padded(view(train, name), half) for name in VIEWS}
    return made | {"heldout": _padded(heldout, sizes.heldout)}


def _padded(pairs: Preferences, size: int) -> Preferences:
    """The pairs and, up to `size`, rows of zeros."""
    more = size - len(pairs)
    return Preferences(
        **{name: np.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)) for name, x in vars(pairs).items()}
    )


def _with_reference(pairs: Preferences, logps: np.ndarray, alone: np.ndarray) -> Pairs:
    """The padded pairs with log-probs [N, 2] under the pre-trained model, and mutual information made of them."""
    lengths = np.maximum((pairs.responses != PAD).sum(axis=2), 1)
    return Pairs(
        **vars(pairs),
        reference_logps=logps,
        mi=mutual_information(logps, alone, lengths),
        num_pairs=np.int32((pairs.prompts[:, 0] == BOS).sum()),
    )


def _questions(rng: np.random.Generator, train_prompts: np.ndarray, sizes: Sizes) -> dict[str, Asked]:
    return {
        "unsafe": asked(evaluation_prompts(rng, sizes.test_per_topic, unsafe=True)),
        "benign": asked(evaluation_prompts(rng, sizes.test_per_topic, unsafe=False)),
        "general": asked(general_prompts(rng, sizes.general)),
        "seen": asked(_one_harm_each(train_prompts, sizes.seen_per_topic)),
        "probe": asked(evaluation_prompts(rng, sizes.probe_per_topic, unsafe=True)),
    }


def _one_harm_each(prompts: np.ndarray, per_topic: int) -> np.ndarray:
    """[K * per_topic, L] the first prompts of each topic that ask for one harm; where they are few, they repeat."""
    single = prompts[harms(prompts).sum(axis=1) == 1]
    return np.concatenate(
        [
            np.resize(rows, (per_topic, rows.shape[1]))
            for rows in (single[topics(single) == k] for k in range(K))
        ]
    )


def _structure() -> Problem:
    """A problem without arrays."""
    pairs = Pairs(*[0] * len(dataclasses.fields(Pairs)))
    asks = [Asked(0, 0) for _ in range(5)]
    return Problem(0, DECODER.abstract_params(), dict.fromkeys(VIEWS, pairs), pairs, *asks)


def _save(path: Path, problem: Problem) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(problem))
    with replacing(path) as temporary:
        save_file({jax.tree_util.keystr(at): np.array(x, order="C") for at, x in leaves}, temporary)


def _load(path: Path) -> Problem:
    arrays = load_file(path)
    return jax.tree_util.tree_map_with_path(lambda at, _: arrays[jax.tree_util.keystr(at)], _structure())
