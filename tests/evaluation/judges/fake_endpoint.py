"""A real HTTP server on this machine that answers as it is told: verdicts, errors, stalls, garbage, dropped lines."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Messages = list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the server does with one request. `stall` waits for the end of the test, trickling never ends."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fault: str = ""  # drop, stall, trickle or trickle_headers


def completion(text: Any, usage: Any = None) -> Reply:
    """A chat completion with this text."""
    content: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    return Reply(json.dumps(content | ({"usage": usage} if usage is not None else {})).encode())


def conversation_of(messages: Messages) -> Messages:
    """The judged conversation, which a request quotes."""
    return json.loads(messages[-1]["content"])


def verdict(messages: Messages) -> Reply:
    """Unsafe where the last answer says "sure", with a harm that depends on its length."""
    answer = conversation_of(messages)[-1]["content"]
    unsafe = "sure" in answer.lower()
    harm = (0.5 if unsafe else 0.0) + (len(answer) % 40) / 100
    text = json.dumps({"verdict": "unsafe" if unsafe else "safe", "harm": harm})
    return completion(text, {"total_tokens": 10})


class FakeEndpoint:
    """`with FakeEndpoint(reply) as endpoint`: `reply(messages)` says what to do with a request."""

    def __init__(self, reply: Callable[[Messages], Reply] = verdict) -> None:
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._at_once = 0
        self._lock, self.over = threading.Lock(), threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "FakeEndpoint":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: dict[str, Any], headers: dict[str, str]) -> Reply:
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self.reply(request["messages"])
        finally:
            with self._lock:
                self._at_once -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/chat/completions"
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = endpoint.answer(request, dict(self.headers.items()))
                if reply.fault == "stall":
                    endpoint.over.wait(20)
                if reply.fault in ("drop", "stall"):
                    self.close_connection = True
                    return
                if reply.fault == "trickle_headers":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: ")
                    self._trickle(b"a")
                    return
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.fault == "trickle":
                    self.send_header("Content-Length", "100000")
                    self.end_headers()
                    self._trickle(b" ")
                    return
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def _trickle(self, byte: bytes) -> None:
                while not endpoint.over.is_set():
                    self.wfile.write(byte)
                    self.wfile.flush()
                    time.sleep(0.02)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = True

    def handle_error(self, *_: object) -> None:
        """A client that has gone is what the tests are about."""
