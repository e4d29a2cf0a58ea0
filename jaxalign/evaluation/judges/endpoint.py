"""A model behind an OpenAI-compatible endpoint as a judge. An answer without a clear verdict is unjudged."""

import functools
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np

from jaxalign.evaluation.judges.chat_client import Budget, ChatClient, OverBudgetError, api_key
from jaxalign.evaluation.judges.interface import Judgements, Prompts, check_call, from_harm
from jaxalign.evaluation.judges.settings import EndpointConfig
from jaxalign.evaluation.judges.verdict import INSTRUCTIONS, Verdict, parse_verdict, verdict_messages
from jaxalign.evaluation.judges.verdict_cache import VerdictCache, fingerprint
from jaxalign.progress import Stage

log = logging.getLogger(__name__)

Request = list[dict[str, str]]


class EndpointJudge:
    """Asks a model for a verdict on each answer, several at a time; equal conversations are asked about once."""

    def __init__(self, config: EndpointConfig) -> None:
        """Raises JudgeError where the environment variable of the key is not set."""
        api_key(config.api_key_env)
        self._config = config
        self.budget = Budget(config.request_budget, config.token_budget)
        self.name = f"endpoint model {config.model}"
        self.fingerprint = fingerprint(
            {
                "model": config.model,
                "instructions": config.instructions or INSTRUCTIONS,
                "categories": config.categories,
                "parameters": config.parameters,
            }
        )
        self.limits = (
            f"{self.name} judges as its instructions and its provider have it, which may change: nothing is known of "
            "its errors until it is calibrated."
        )

    def __call__(self, prompts: Prompts, responses: Sequence[str]) -> Judgements:
        """Judge by the verdicts. Raises JudgeError for an endpoint that refuses or is silent, or a spent budget."""
        check_call(prompts, responses)
        config = self._config
        requests = [
            verdict_messages(prompt, response, config.instructions, config.categories)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        where = {"url": config.url, "model": config.model, "parameters": config.parameters}
        keys = [fingerprint({**where, "messages": messages}) for messages in requests]
        with VerdictCache(config.cache) as cache:
            verdicts = {key: cache.get(key) for key in keys}
            todo = {
                key: messages for key, messages in zip(keys, requests, strict=True) if verdicts[key] is None
            }
            if todo:
                verdicts |= self._ask_all(todo, cache)
        found = [verdicts[key] for key in keys]
        return from_harm(
            [np.nan if verdict is None else verdict.harm for verdict in found],
            safe=np.array([verdict is not None and not verdict.unsafe for verdict in found], bool),
            categories=tuple(None if verdict is None else verdict.category for verdict in found)
            if config.categories
            else None,
        )

    def _ask_all(self, todo: Mapping[str, Request], cache: VerdictCache) -> dict[str, Verdict | None]:
        """Verdicts by key, each kept in the cache as it comes."""
        with (
            ChatClient(self._config, self.budget) as client,
            Stage("judge", len(todo)) as stage,
            ThreadPoolExecutor(self._config.concurrency) as pool,
        ):
            ask = functools.partial(self._ask, client, cache)
            futures = {pool.submit(ask, key, messages): key for key, messages in todo.items()}
            try:
                for future in as_completed(futures):
                    future.result()
                    stage.advance()
            except BaseException:  # also an interrupt: do not pay for the rest
                client.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if client.failures:
            reasons = ", ".join(f"{number} x {reason}" for reason, number in client.failures.most_common(5))
            log.warning("%s: of %d conversations without a verdict: %s", self.name, len(todo), reasons)
        return {key: future.result() for future, key in futures.items()}

    def _ask(self, client: ChatClient, cache: VerdictCache, key: str, messages: Request) -> Verdict | None:
        parse = functools.partial(parse_verdict, categories=self._config.categories)
        try:
            verdict = client.ask(messages, parse)
        except OverBudgetError:
            if self._config.over_budget != "unjudged":
                raise
            client.note("beyond the budget")
            return None
        if verdict is not None:
            cache.put(key, verdict)
        return verdict
