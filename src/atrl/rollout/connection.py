"""Requests to a `vllm serve`: retried where that is safe, and every failure one line with URL, cause and remedy."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

START_COMMAND = "python -m atrl.rollout.serve MODEL"
"""Starts a server with everything that atrl asks of it."""

PASSING = (429, 502, 503, 504)
"""HTTP answers of a server, or of a proxy before it, that is overloaded or not ready: the next try may succeed."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds between tries: doubled each time, up to the longest."""

_REMEDIES: Mapping[int, str] = {
    403: f"start the server with `{START_COMMAND}`, which switches on what atrl needs",
    404: f"the server lacks this endpoint: start it with `{START_COMMAND}`, which switches on what atrl needs",
    413: "a proxy before the server refuses requests of this size: raise its limit",
    429: "the server is overloaded: lower rollout.sampler.max_concurrent_requests",
    500: "the server's own log says more",
    502: "a proxy answers, but the server behind it does not: is it still running?",
    503: "the server is not ready: its own log says why",
    504: "the server is too slow for the proxy before it: lower rollout.sampler.max_concurrent_requests",
}


@dataclass(frozen=True, kw_only=True)
class ServerConnection:
    """How to reach one server.

    Every request may be sent twice (a generation has its seed, an update the folder of its weights), so lost
    connections, timeouts and `PASSING` answers are tried again.

    Args:
        url: of the server, without a path: ``http://host:8000``.
        api_key_variable: the environment variable that holds the server's key; unset or empty for none.
        timeout_seconds: for one answer.
        retries: further tries after the first; 0 for none.
        connections: kept open at the same time.

    Raises:
        ValueError: if an argument can't be used. A key in the URL is refused, because URLs are logged.
    """

    url: str
    api_key_variable: str = "VLLM_API_KEY"
    timeout_seconds: float = 600.0
    retries: int = 3
    connections: int = 64
    _session: Session = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError(
                "rollout.sampler.url must not hold a user, a password or a query, since it is logged: put the key into "
                f"the environment variable {self.api_key_variable}"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname or not _has_usable_port(self.url):
            raise ValueError(f"rollout.sampler.url must look like http://host:8000, got {self.url!r}")
        if parts.path.strip("/"):
            raise ValueError(
                f"rollout.sampler.url must be without a path, got {self.url!r}: write {parts.scheme}://{parts.netloc}"
            )
        if self.timeout_seconds <= 0:
            raise ValueError(f"rollout.sampler.timeout_seconds must be above 0, got {self.timeout_seconds}")
        if self.retries < 0:
            raise ValueError(f"rollout.sampler.retries must be 0 (none) or more, got {self.retries}")
        if self.connections < 1:
            raise ValueError(f"rollout.sampler.max_concurrent_requests must be at least 1, got {self.connections}")
        object.__setattr__(self, "url", self.url.rstrip("/"))
        object.__setattr__(self, "_session", self._open())

    def get(self, path: str) -> Any:
        """The JSON that the server answers to a GET of `path`.

        Raises:
            ValueError: in one line, if it gives none.
        """
        return self._ask("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that the server answers to `body`; None where it answers nothing.

        Raises:
            ValueError: in one line, if it refuses or can't be reached.
        """
        return self._ask("POST", path, body)

    def wait_until_ready(self, seconds: float) -> None:
        """Return once the server says that it is healthy.

        Raises:
            ValueError: in one line, if it does not within `seconds`, or is no vLLM server.
        """
        import requests

        deadline, pause = time.monotonic() + seconds, FIRST_PAUSE
        while True:
            try:
                response = self._send("GET", "/health", None)
            except requests.RequestException as error:
                cause = _cause(error)
            else:
                if response.status_code == 200:
                    return
                if response.status_code not in PASSING:
                    raise self._refused("/health", response)
                cause = f"HTTP {response.status_code}"
            if time.monotonic() + pause > deadline:
                raise ValueError(
                    f"rollout=server: {self.url} was not ready within {seconds:g} s ({cause}): start it with "
                    f"`{START_COMMAND}`, correct rollout.sampler.url, or raise rollout.sampler.wait_seconds"
                )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def close(self) -> None:
        """Close what is open; a later request opens it again."""
        self._session.close()

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        import requests

        pause = FIRST_PAUSE
        for left in range(self.retries, -1, -1):
            try:
                response = self._send(method, path, body)
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                if not left:
                    raise self._unreachable(path, error) from error
            except requests.RequestException as error:
                raise self._unreachable(path, error) from error
            else:
                if response.ok and response.status_code < 300:
                    return self._json(path, response)
                if response.status_code not in PASSING or not left:
                    raise self._refused(path, response)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError("the last try either returns or raises")

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> Response:
        return self._session.request(
            method,
            self.url + path,
            json=body,
            timeout=(10.0, self.timeout_seconds),
            allow_redirects=False,  # the key must not follow one elsewhere
            auth=self._authorise,
        )

    def _authorise(self, request: PreparedRequest) -> PreparedRequest:
        key = os.environ.get(self.api_key_variable)
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    def _json(self, path: str, response: Response) -> Any:
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise ValueError(
                f"rollout=server: {self.url}{path} answers with no JSON: is rollout.sampler.url that of a vLLM server?"
            ) from error

    def _refused(self, path: str, response: Response) -> ValueError:
        status = response.status_code
        if status == 401:
            remedy = f"set the environment variable {self.api_key_variable} to the server's key"
        else:
            remedy = _REMEDIES.get(status, "")
        detail = _detail(response)
        return ValueError(
            f"rollout=server: {self.url}{path} refused: HTTP {status}"
            + (f", {detail}" if detail else "")
            + (f": {remedy}" if remedy else "")
        )

    def _unreachable(self, path: str, error: Exception) -> ValueError:
        import requests

        tries = self.retries + 1
        if isinstance(error, requests.Timeout):
            remedy = "raise rollout.sampler.timeout_seconds, or lower rollout.sampler.max_concurrent_requests"
        else:
            remedy = "is the server still running? Its own log says more"
        return ValueError(
            f"rollout=server: {self.url}{path} did not answer in {tries} tr{'y' if tries == 1 else 'ies'} "
            f"({_cause(error)}): {remedy}"
        )

    def _open(self) -> Session:
        import requests
        from requests.adapters import HTTPAdapter

        session = requests.Session()
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=self.connections)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        return session


def _has_usable_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _cause(error: BaseException) -> str:
    """What happened, in a few words: those of the first of the errors that led to `error`."""
    import requests

    if isinstance(error, requests.Timeout):
        return "no connection in time" if isinstance(error, requests.ConnectTimeout) else "no answer in time"
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _detail(response: Response) -> str:
    """What the server says of its refusal, on one line, cut where it is long."""
    try:
        body = response.json()
    except ValueError:
        return ""
    for key in ("error", "message", "detail"):
        if isinstance(body, dict) and key in body:
            body = body[key]
    text = " ".join(str(body).split())
    return text if len(text) <= 300 else f"{text[:297]}…"
