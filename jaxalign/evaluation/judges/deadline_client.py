"""HTTP requests with one time limit for the whole exchange. What is asked, and what is replied, is not known here."""

import contextlib
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import httpx2

from jaxalign.errors import JaxalignError

_CONNECTED = ("connection.connect_tcp.complete", "connection.start_tls.complete")


class TooLargeError(JaxalignError, ValueError):
    """A reply of more bytes than are read."""


class DeadlineClient:
    """Posts from several threads, each over a connection of its own. To be closed when none of them posts any more."""

    def __init__(self, headers: Mapping[str, str], timeout: float) -> None:
        self._headers, self._timeout = headers, timeout
        self._of_thread = threading.local()
        self._lines: list[_Line] = []

    def close(self) -> None:
        """Close all connections."""
        for line in self._lines:
            line.client.close()

    def post(
        self, url: str, body: Mapping[str, Any], *, largest: int
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and content.

        Raises TimeoutError where the exchange takes longer than the limit, however slowly its bytes trickle in;
        TooLargeError for content of more than `largest` bytes; what httpx2 raises for all else.
        """
        line, deadline = self._line(), time.monotonic() + self._timeout
        guard = threading.Timer(self._timeout, line.cut)
        guard.daemon = True
        guard.start()
        content = bytearray()
        try:
            with line.client.stream("POST", url, json=body, extensions={"trace": line.note}) as response:
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > largest:
                        raise TooLargeError(f"a reply of more than {largest} bytes")
        except httpx2.RequestError as error:
            if isinstance(error, httpx2.TimeoutException) or time.monotonic() >= deadline:
                raise TimeoutError from error
            raise
        finally:
            guard.cancel()
        if time.monotonic() >= deadline:  # a body without a length ends where it is cut
            raise TimeoutError
        return response.status_code, response.headers, bytes(content)

    def _line(self) -> "_Line":
        if not hasattr(self._of_thread, "line"):
            self._of_thread.line = _Line(httpx2.Client(headers=self._headers, timeout=self._timeout))
            self._lines.append(self._of_thread.line)
        return self._of_thread.line


class _Line:
    """The connection of a thread, which another thread can cut: a read that waits has no limit for many reads."""

    def __init__(self, client: httpx2.Client) -> None:
        self.client = client
        self._socket: socket.socket | None = None

    def note(self, event: str, info: Mapping[str, Any]) -> None:
        """Remember the socket of a new connection."""
        if event in _CONNECTED:
            self._socket = info["return_value"].get_extra_info("socket")

    def cut(self) -> None:
        """Wake whoever waits for the connection."""
        if self._socket is not None:
            # The plain shutdown also of TLS, whose own would wait for its peer.
            with contextlib.suppress(OSError):  # closed by itself meanwhile
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
