"""A server on loopback that remembers what it was sent."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """A loopback server that keeps what it is sent and answers by `replies`, the last of them for ever."""

    def __init__(self, replies: list[tuple[int, str]]) -> None:
        self.received: list[tuple[str, str, dict[str, str], bytes]] = []
        waiting = list(replies)

        class Handler(BaseHTTPRequestHandler):
            def answer(handler) -> None:
                body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
                self.received.append((handler.command, handler.path, dict(handler.headers), body))
                status, text = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                handler.send_response(status)
                if status in (301, 302, 307, 308):
                    handler.send_header("Location", text)
                handler.send_header("Content-Length", str(len(text.encode())))
                handler.end_headers()
                handler.wfile.write(text.encode())

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer

            def log_message(handler, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/api/upload/"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def sent(self) -> list[tuple[str, str]]:
        return [(method, path) for method, path, _, _ in self.received]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@contextmanager
def servers() -> Iterator[Callable[..., Server]]:
    """Start servers by calling it with (status, text) replies; all end with it."""
    started: list[Server] = []

    def start(*replies: tuple[int, str]) -> Server:
        started.append(Server(list(replies)))
        return started[-1]

    yield start
    for server in started:
        server.close()
