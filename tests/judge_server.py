"""A real HTTP server on 127.0.0.1 that speaks the chat-completions protocol, well or badly, as scripted."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """A status and a body; `cut` promises more bytes than are sent; `hang` is a wait before."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    hang: float = 0.0


def completion(text: str | None, top: list[list[tuple[str, float]]] | None = None) -> Answer:
    """A well-formed chat completion; `top` are likeliest tokens and log-probabilities, a list a token."""
    logprobs = None
    if top is not None:
        logprobs = {
            "content": [
                {
                    "token": ones[0][0],
                    "logprob": ones[0][1],
                    "bytes": None,
                    "top_logprobs": [{"token": t, "logprob": p, "bytes": None} for t, p in ones],
                }
                for ones in top
            ]
        }
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        "logprobs": logprobs,
    }
    return Answer({"id": "x", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]})


def error(status: int, message: str = "no", **headers: str) -> Answer:
    """An error as endpoints send it."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer({"error": {"message": message, "type": "error"}}, status, named)


@dataclass
class Server:
    """The URL, and what was asked: every request's body and headers, with their times."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0


@contextmanager
def serving(script: Callable[[str, int], Answer], models: Sequence[str] | None = ("m",)) -> Iterator[Server]:
    """Serve `script(text of the last message, how often it was asked before)` in a thread, and a list of `models`."""
    lock, seen, stop = threading.Lock(), Counter(), threading.Event()
    running = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal running
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"] if "messages" in body else ""
            with lock:
                running += 1
                server.most_at_once = max(server.most_at_once, running)
                server.bodies.append(body)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                server.times.append(time.monotonic())
                before = seen[text]
                seen[text] += 1
            answer = script(text, before)
            stop.wait(answer.hang)
            data = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
            with lock:
                running -= 1
            try:
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data) + (100 if answer.cut else 0)))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                pass
            if answer.cut:
                self.close_connection = True

        def do_GET(self) -> None:
            listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in models or ()]}
            data = json.dumps(listed).encode()
            self.send_response(404 if models is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    inner = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    inner.daemon_threads = True
    inner.block_on_close = False
    server = Server(f"http://127.0.0.1:{inner.server_port}/v1")
    thread = threading.Thread(target=inner.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        inner.shutdown()
        inner.server_close()
        thread.join()
