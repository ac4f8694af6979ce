"""Requests to a small HTTP server that answers as it is told: what is retried, said and kept secret."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from atrl.rollout import connection
from atrl.rollout.connection import ServerConnection
from atrl.rollout.server import VllmServerSampler

KEY = "k3y"
HANG_UP = 0
"""Instead of an HTTP status: close the connection without an answer."""


class Scripted(ThreadingHTTPServer):
    """Answers request after request with the next (status, body) of `script`, and the last one for ever."""

    daemon_threads = True
    script: list[tuple[int, str]]
    delay = 0.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address) -> None:
        """A client that gave up is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.path, self.headers.get("Authorization")))
        time.sleep(self.server.delay)
        status, body = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        if status == HANG_UP:
            self.close_connection = True
            return
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", f"{self.server.url}/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST = answer

    def log_message(self, format, *args) -> None:
        """Silence."""


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Scripted]]:
    monkeypatch.setattr(connection, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers: list[Scripted] = []

    def start(*script: tuple[int, str], delay: float = 0.0) -> Scripted:
        server = Scripted()
        server.script, server.delay = list(script), delay
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def refusal(call, *arguments) -> str:
    with pytest.raises(ValueError) as error:
        call(*arguments)
    message = str(error.value)
    assert "\n" not in message and KEY not in message
    return message


@pytest.mark.parametrize("passing", [HANG_UP, 429, 502, 503, 504])
def test_what_may_pass_is_tried_again(scripted, passing: int) -> None:
    server = scripted((passing, ""), (passing, ""), (200, '{"a": 1}'))
    assert ServerConnection(url=server.url, retries=2).post("/x", {"b": 2}) == {"a": 1}
    assert [path for _, path, _ in server.requests] == ["/x"] * 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 500, 501])
def test_what_will_not_pass_is_tried_once(scripted, status: int) -> None:
    server = scripted((status, '{"error": {"message": "because\\n of this"}}'))
    message = refusal(ServerConnection(url=server.url, retries=5).post, "/x", {})
    assert message.startswith(f"rollout=server: {server.url}/x refused: HTTP {status}, because of this")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "set the environment variable THE_KEY to the server's key"),
        (403, "start the server with `python -m atrl.rollout.serve MODEL`"),
        (404, "the server lacks this endpoint: start it with `python -m atrl.rollout.serve MODEL`"),
        (503, "the server is not ready"),
    ],
)
def test_refusals_name_the_remedy(scripted, status: int, remedy: str) -> None:
    server = scripted((status, ""))
    message = refusal(ServerConnection(url=server.url, api_key_variable="THE_KEY", retries=0).get, "/x")
    assert message.startswith(f"rollout=server: {server.url}/x refused: HTTP {status}: {remedy}")


@pytest.mark.parametrize("retries", [0, 2])
def test_the_tries_are_bounded(scripted, retries: int) -> None:
    server = scripted((HANG_UP, ""))
    message = refusal(ServerConnection(url=server.url, retries=retries).post, "/x", {})
    tries = "1 try" if retries == 0 else "3 tries"
    cause = "Server disconnected without sending a response"
    assert f"{server.url}/x did not answer in {tries} ({cause}): is the server still running?" in message
    assert len(server.requests) == retries + 1


def test_a_server_that_is_too_slow_is_given_up(scripted) -> None:
    server = scripted((200, "{}"), delay=1.0)
    message = refusal(ServerConnection(url=server.url, retries=1, timeout_seconds=0.05).post, "/x", {})
    assert "/x did not answer in 2 tries (no answer in time): raise rollout.sampler.timeout_seconds" in message


def test_nobody_there(scripted) -> None:
    server = scripted((200, "{}"))
    server.shutdown()
    server.server_close()
    message = refusal(ServerConnection(url=server.url, retries=1).get, "/x")
    assert message.startswith(f"rollout=server: {server.url}/x did not answer in 2 tries (Connection refused): ")
    message = refusal(ServerConnection(url=server.url).wait_until_ready, 0.01)
    assert message.startswith(f"rollout=server: {server.url} was not ready within 0.01 s (")
    assert "start it with `python -m atrl.rollout.serve MODEL`" in message


def test_a_server_that_is_starting_is_waited_for(scripted) -> None:
    server = scripted((HANG_UP, ""), (503, ""), (200, ""))
    ServerConnection(url=server.url, retries=0).wait_until_ready(5)
    assert [path for _, path, _ in server.requests] == ["/health"] * 3


def test_something_else_than_vllm_is_not_waited_for(scripted) -> None:
    server = scripted((404, ""))
    assert "/health refused: HTTP 404" in refusal(ServerConnection(url=server.url).wait_until_ready, 60)
    assert len(server.requests) == 1
    server.script = [(200, "<html>hello</html>")]
    message = refusal(ServerConnection(url=server.url).get, "/x")
    assert "answers with no JSON: is rollout.sampler.url that of a vLLM server?" in message


def test_the_key_goes_to_the_server_alone(scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    server = scripted((302, ""), (500, "{}"), (200, ""))
    reached = ServerConnection(url=server.url, api_key_variable="THE_KEY", retries=0)
    assert KEY not in repr(reached)
    refusal(reached.get, "/x")
    refusal(reached.get, "/x")
    assert reached.post("/y") is None
    assert server.requests == [
        ("GET", "/x", f"Bearer {KEY}"), ("GET", "/x", f"Bearer {KEY}"), ("POST", "/y", f"Bearer {KEY}")
    ]  # fmt: skip


def test_without_a_key_nothing_is_authorised(scripted, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Not even by a netrc file, which requests would take by itself."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("THE_KEY", "")
    server = scripted((200, "{}"))
    ServerConnection(url=server.url, api_key_variable="THE_KEY").get("/x")
    assert server.requests == [("GET", "/x", None)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, r"rollout.sampler.url must look like http://host:8000, got 'localhost:8000'"),
        ({"url": "ftp://host"}, r"must look like http://host:8000"),
        ({"url": "http://host:eighty"}, r"must look like http://host:8000"),
        ({"url": "http://host:8000/v1"}, r"must be without a path, got .*: write http://host:8000"),
        ({"url": "http://me:k3y@host"}, r"must not hold a user, .* environment variable VLLM_API_KEY$"),
        ({"url": "http://host?key=k3y"}, r"must not hold a user, .* environment variable VLLM_API_KEY$"),
        ({"timeout_seconds": 0}, r"rollout.sampler.timeout_seconds must be above 0, got 0"),
        ({"retries": -1}, r"rollout.sampler.retries must be 0 \(none\) or more, got -1"),
        ({"max_concurrent_requests": 0}, r"rollout.sampler.max_concurrent_requests must be at least 1, got 0"),
        ({"wait_seconds": -1}, r"rollout.sampler.wait_seconds must be 0 or more, got -1"),
        ({"weight_transfer": "post"}, r"rollout.sampler.weight_transfer must be one of folder, nccl, got 'post'"),
    ],
)
def test_options_that_can_not_work_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        VllmServerSampler(**{"url": "http://host:8000", **options})
    assert KEY not in str(error.value)


def test_a_slash_at_the_end_is_no_path() -> None:
    assert ServerConnection(url="http://host:8000/").url == "http://host:8000"


def test_servers_that_were_started_otherwise_are_named(scripted) -> None:
    ready = (200, "")
    server = scripted(ready, (500, '{"error": "no attribute"}'))
    message = refusal(VllmServerSampler(url=server.url).check, "qwen2_5_vl")
    assert "without atrl's worker extension" in message and "--worker-extension-cls atrl.rollout.vllm_worker" in message
    server = scripted(ready, (200, '{"results": [{"logprobs_mode": "raw_logprobs"}]}'))
    message = refusal(VllmServerSampler(url=server.url).check, "qwen2_5_vl")
    assert "returns raw_logprobs" in message and "--logprobs-mode processed_logprobs" in message


@pytest.mark.parametrize("backend", [None, "ipc"])
def test_a_server_that_takes_no_weights_over_nccl_is_found_before_anything_loads(scripted, backend: str | None) -> None:
    described = json.dumps({"results": [{"logprobs_mode": "processed_logprobs", "weight_transfer": backend}]})
    server = scripted((200, ""), (200, described))
    message = refusal(VllmServerSampler(url=server.url, weight_transfer="nccl").check, "qwen2_5_vl")
    assert '--weight-transfer-config \'{"backend": "nccl"}\'`, or use weight_transfer=folder' in message
    server = scripted((200, ""), (200, described), (200, "{}"))
    VllmServerSampler(url=server.url).check("qwen2_5_vl")
