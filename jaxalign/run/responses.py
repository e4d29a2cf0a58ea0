"""The answers of a model to prompts, kept in a file until they are judged."""

import json
import logging
from pathlib import Path
from typing import Any

from jaxalign.data.prompts import PromptSet
from jaxalign.evaluation.answerer import Answerer
from jaxalign.evaluation.settings import AnswersConfig
from jaxalign.files import write_json
from jaxalign.models.sampling import GenerationError, Sampling
from jaxalign.run.generate import generate_texts, text_format
from jaxalign.run.load import LoadedModel
from jaxalign.run.manifest import model_fingerprint, read_manifest, run_fingerprint

log = logging.getLogger(__name__)


def sampling_of(options: AnswersConfig) -> Sampling:
    """How tokens are drawn. Raises GenerationError for options without effect."""
    if options.seed and options.temperature == 0.0:
        raise GenerationError(
            f"answers.seed {options.seed} has no effect at temperature 0; leave it out, or give a temperature"
        )
    return Sampling(options.temperature, options.top_k, options.top_p)


def answerer_of(path: Path, model: LoadedModel, options: AnswersConfig) -> Answerer:
    """Who answers, and how it is asked."""
    run = read_manifest(path)
    found = model_fingerprint(model.checkpoint) if run is None else run_fingerprint(run, model.step)
    return Answerer(path.resolve().name, found, model.step, options.model_dump(exclude={"batch_size"}))


def kept_responses(
    answerer: Answerer, model: LoadedModel, prompts: PromptSet, options: AnswersConfig, kept: Path
) -> list[list[str]]:
    """The answers of the model; those that an earlier call left unjudged if they are of the same model and prompts."""
    format = text_format(
        model, without_template="put the chat_template.jinja that it was trained with into its folder"
    )
    key: dict[str, Any] = {
        "model": answerer.model_fingerprint,
        "prompts": prompts.fingerprint(),
        "ids": [row.id for row in prompts.rows],
        "answers": answerer.answer_settings,
    }
    found = _kept(kept, key) if kept.exists() else None
    if found is not None:
        log.info("answers taken from %s, where an earlier call left them unjudged", kept)
        return found
    texts = generate_texts(
        model,
        [row.prompt for row in prompts.rows],
        sampling=sampling_of(options),
        num_samples=options.num_samples,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        seed=options.seed,
        format=format,
    )
    write_json(kept, {"key": key, "responses": texts})
    return texts


def _kept(file: Path, key: dict[str, Any]) -> list[list[str]] | None:
    """The answers that an earlier call left, None if they are to something else or the file is damaged."""
    try:
        content = json.loads(file.read_bytes())
        return content["responses"] if content["key"] == key else None
    except (ValueError, KeyError, TypeError) as error:
        log.warning(
            "%s is damaged (%s: %s), so the prompts are answered anew", file, type(error).__name__, error
        )
        return None
