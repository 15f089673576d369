"""A loopback server that speaks OpenAI's chat completions, as well or as badly as a test asks for."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server says: ``body`` as it stands, in ``drip`` pieces with pauses of ``pause_s`` before each."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    pause_s: float = 0.0
    drip: int = 1
    promised: int | None = None  # bytes, where the header tells another number


@dataclass
class Received:
    """What the server was asked."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def asked(self) -> dict[str, Any]:
        """The user's message: the class and its texts."""
        return json.loads(self.body["messages"][1]["content"])


Script = Callable[[Received, int], Reply]
"""Answers a request, given how many came before it."""


@dataclass
class Server:
    url: str
    received: list[Received]
    closing: threading.Event


def completion(content: Any, usage: Mapping[str, int] | None = None) -> Reply:
    """A chat completion that says ``content``."""
    document: dict[str, Any] = {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}
    if usage is not None:
        document["usage"] = usage
    return Reply(json.dumps(document).encode())


def scenes(*texts: Any) -> Reply:
    """A chat completion of texts, well formed, of 30 tokens in and 20 out."""
    return completion(json.dumps({"scenes": list(texts)}), {"prompt_tokens": 30, "completion_tokens": 20})


def good(received: Received, _number: int = 0) -> Reply:
    """What a perfect model would say."""
    phrase = received.asked["class"]
    return scenes(*(f"{phrase}, seen by chance, variant {letters(k)}" for k in range(len(received.asked["texts"]))))


def letters(number: int) -> str:
    """A number in words that no vocabulary has."""
    return "".join(chr(ord("k") + int(digit)) for digit in str(number)) + "q"


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    """Serves until the end of the block."""
    received: list[Received] = []
    closing = threading.Event()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(received)
                received.append(Received(self.path, dict(self.headers), body))
            self._send(script(received[number], number))

        def do_GET(self) -> None:
            with lock:
                received.append(Received(self.path, dict(self.headers), {}))
            self._send(Reply(b"{}"))

        def _send(self, reply: Reply) -> None:
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(reply.promised or len(reply.body)))
                self.end_headers()
                step = max(1, -(-len(reply.body) // reply.drip))
                for start in range(0, len(reply.body), step):
                    if reply.pause_s and closing.wait(reply.pause_s):
                        return
                    self.wfile.write(reply.body[start : start + step])
                    self.wfile.flush()
            except OSError:  # the client gave up, as it should
                pass

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_address[1]}/v1", received, closing)
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
