"""A server that speaks the chat protocol and, asked to, misbehaves."""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = json.dumps(
    {"clause": "A small red well.", "attributes": ["circular base", "visible crank."]}
)
CAPTION = "a small red well. circular base, visible crank"
USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}

Reply = Callable[[BaseHTTPRequestHandler], None]


def completion(
    text: str | None, finish: str = "stop", usage: dict[str, int] | None = USAGE, **message: Any
) -> dict[str, Any]:
    said = {"role": "assistant", "content": text, **message}
    choice = {"index": 0, "finish_reason": finish, "message": said}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m"} | {
        "choices": [choice],
        "usage": usage,
    }


def reply(status: int, body: Any, **headers: str) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        fields = {"Content-Type": "application/json", "Content-Length": str(len(data))} | headers
        for name, value in fields.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    return send


def says(text: str | None, **options: Any) -> Reply:
    return reply(200, completion(text, **options))


def cut_off(handler: BaseHTTPRequestHandler) -> None:
    """Promise a whole answer, and hang up in the middle of it."""
    data = json.dumps(completion(GOOD)).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


class ChatServer(ThreadingHTTPServer):
    """Answers with `script`, one reply per request, then with `then`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: deque[Reply] = deque()
        self.then: Reply = says(GOOD)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.ended = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append({"path": self.path, **body})
            self.server.keys.append(self.headers["Authorization"])
            send = self.server.script.popleft() if self.server.script else self.server.then
        send(self)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running() -> Iterator[ChatServer]:
    server = ChatServer()
    thread = threading.Thread(target=lambda: server.serve_forever(0.01))
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
