"""A server that takes a model as the Hugging Face hub does, for the real client."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """What it was sent."""

    url: str = ""
    made: list[dict] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def running_hub(token: str) -> Iterator[Hub]:
    """A hub that knows one token and takes every file as a small one."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({"name": "me", "type": "user", "auth": {}})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                hub.made.append(json.loads(body))
                self._answer({"url": f"{hub.url}/me/mine"})
            elif self.path.endswith("/preupload/main"):
                asked = json.loads(body)["files"]
                kinds = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
                self._answer({"files": kinds})
            else:
                for line in map(json.loads, body.decode().splitlines()):
                    if line["key"] == "file":
                        hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self._answer({"commitUrl": f"{hub.url}/me/mine/commit/1", "commitOid": "1"})

        def _answer(self, content: dict) -> None:
            known = self.headers["Authorization"] == f"Bearer {token}"
            text = json.dumps(content if known else {"error": "Invalid credentials"}).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
