"""Requests to an OpenAI-compatible endpoint: time limits, retries, a budget. What a reply means is not known here."""

import email.utils
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx2

from jaxalign.errors import JaxalignError
from jaxalign.evaluation.judges.deadline_client import DeadlineClient, TooLargeError
from jaxalign.evaluation.judges.interface import JudgeError
from jaxalign.evaluation.judges.settings import EndpointConfig

T = TypeVar("T")

LARGEST_REPLY = 2**20  # bytes; a verdict has a few hundred
_TOO_MUCH = (400, 413, 422)  # about this one conversation, such as one that is too long for the model


class OverBudgetError(JudgeError):
    """The budget of an endpoint is spent."""


class _AttemptError(JaxalignError):
    """A request without a usable answer: why, whether the server replied, and how long it asks to wait."""

    def __init__(self, reason: str, *, replied: bool = False, wait: float = 0.0, final: bool = False) -> None:
        super().__init__(reason)
        self.replied, self.wait, self.final = replied, wait, final


class Budget:
    """Requests and tokens spent by all threads."""

    def __init__(self, requests: int | None, tokens: int | None) -> None:
        self._limits, self._lock = (requests, tokens), threading.Lock()
        self.requests = self.tokens = 0

    def take_request(self) -> None:
        """Count one more request. Raises OverBudgetError where none is left."""
        requests, tokens = self._limits
        with self._lock:
            if requests is not None and self.requests >= requests:
                raise OverBudgetError(f"request_budget={requests} is spent; raise it, or judge fewer answers")
            if tokens is not None and self.tokens >= tokens:
                raise OverBudgetError(
                    f"token_budget={tokens} is spent ({self.tokens} used); raise it, or judge fewer answers"
                )
            self.requests += 1

    def add_tokens(self, usage: Any) -> None:
        """Count what a reply says that it used. Raises JudgeError where a budget cannot be kept for want of it."""
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        known = isinstance(total, int) and not isinstance(total, bool) and total >= 0
        if not known and self._limits[1] is not None:
            raise JudgeError("the endpoint does not say how many tokens it used; give request_budget instead")
        with self._lock:
            self.tokens += total if known and isinstance(total, int) else 0


class ChatClient:
    """Asks the endpoint of a configuration, from several threads. A context manager: it holds connections."""

    def __init__(self, config: EndpointConfig, budget: Budget) -> None:
        """Raises JudgeError for a key that is asked for and missing."""
        self._config, self._budget = config, budget
        self._key = api_key(config.api_key_env)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = DeadlineClient(headers, config.timeout)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._silent = 0  # conversations in a row without an answer
        self.failures: Counter[str] = Counter()

    def __enter__(self) -> "ChatClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def stop(self) -> None:
        """Make no further request: who waits for one gets no answer."""
        self._stop.set()

    def note(self, reason: str) -> None:
        """Count a conversation without an answer, by reason, for the log."""
        with self._lock:
            self.failures[reason] += 1

    def ask(self, messages: list[dict[str, str]], parse: Callable[[str], T]) -> T | None:
        """The first reply that `parse` takes, None where no attempt gives one. `parse` raises ValueError for garbage.

        Raises OverBudgetError, and JudgeError where the endpoint refuses all requests or gives no reply any more.
        """
        replied, reason, wait = False, "", 0.0
        for attempt in range(self._config.max_attempts):
            pause = min(self._config.max_wait, max(wait, self._pause(attempt)))
            if self._stop.is_set() or (attempt and self._wait(pause)):
                return None
            self._budget.take_request()
            try:
                answer = self._attempt(messages, parse)
            except _AttemptError as failure:
                reason, wait, replied = str(failure), failure.wait, replied or failure.replied
                if failure.final:
                    break
                continue
            self._count(replied=True)
            return answer
        self._count(replied=replied, reason=reason)
        return None

    def _wait(self, seconds: float) -> bool:
        """Wait, unless `stop` is called; whether it was."""
        return self._stop.wait(seconds)

    def _pause(self, attempt: int) -> float:
        """Seconds: doubling, and with jitter, so that threads that failed together do not come back together."""
        longest = min(self._config.max_wait, self._config.backoff * 2.0 ** min(attempt - 1, 30))
        return longest * random.uniform(0.5, 1.0)

    def _count(self, *, replied: bool, reason: str = "") -> None:
        """Note how a conversation ended. Raises JudgeError after too many in a row without an answer."""
        if reason:
            self.note(reason)
        with self._lock:
            self._silent = 0 if replied else self._silent + 1
            if self._silent >= self._config.max_failures:
                raise self._fatal(
                    f"{self._config.url} gave no answer to {self._silent} conversations in a row (last: {reason}); "
                    "check that it runs, and takes this model, these parameters and conversations of this length"
                )

    def _fatal(self, message: str) -> JudgeError:
        """An error that ends all requests, those of other threads too."""
        self.stop()
        return JudgeError(message)

    def _attempt(self, messages: list[dict[str, str]], parse: Callable[[str], T]) -> T:
        body = {"model": self._config.model, "messages": messages, **self._config.parameters}
        status, headers, content = self._post(body)
        if status in (408, 429) or status >= 500:
            raise _AttemptError(f"status {status}", wait=retry_after(headers.get("retry-after")))
        if status in _TOO_MUCH:
            raise _AttemptError(f"status {status}: {self._excerpt(content)}", final=True)
        if status != 200:
            raise self._fatal(
                f"{self._config.url} answered with status {status} ({self._excerpt(content)}); check url, model and "
                "api_key_env"
            )
        try:
            return parse(self._text(content))
        except (ValueError, RecursionError) as error:
            raise _AttemptError(f"garbage: {str(error).partition(':')[0]:.80}", replied=True) from error

    def _post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and content."""
        url = self._config.url.rstrip("/") + "/chat/completions"
        try:
            return self._http.post(url, body, largest=LARGEST_REPLY)
        except TimeoutError as error:
            raise _AttemptError("time-out") from error
        except TooLargeError as error:
            raise _AttemptError(str(error), replied=True) from error
        except httpx2.RequestError as error:
            raise _AttemptError(type(error).__name__) from error

    def _text(self, content: bytes) -> str:
        """The text of a reply, whose tokens are counted. Raises ValueError for what is no chat completion."""
        reply = json.loads(content)
        if not isinstance(reply, dict):
            raise ValueError("no JSON object")
        self._budget.add_tokens(reply.get("usage"))
        try:
            text = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError("no choices[0].message.content") from error
        if not isinstance(text, str):
            raise ValueError("a message without text")
        return text

    def _excerpt(self, content: bytes) -> str:
        """The beginning of an error of the server, which may quote the key."""
        text = content.decode("utf-8", errors="replace")
        return " ".join((text.replace(self._key, "***") if self._key else text)[:200].split())


def api_key(variable: str | None) -> str | None:
    """The key in an environment variable. Raises JudgeError, which never shows it, where there is none of use."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        found = "no key" if not key else "a key with characters that no HTTP header can carry"
        raise JudgeError(
            f"the environment variable {variable} holds {found}; set it, or leave api_key_env out"
        )
    return key


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, given as a number or as a date; 0 without a readable one."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
