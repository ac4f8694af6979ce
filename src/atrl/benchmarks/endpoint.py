"""A judge behind an OpenAI-compatible endpoint: replies cached on disk, requests retried, costs counted."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from atrl.benchmarks.judge import JudgeRequest, Reply

_AGAIN = (408, 409, 429, 500, 502, 503, 504)
"""Statuses that may pass by themselves."""


@dataclass(kw_only=True)
class EndpointJudge:
    """Asks ``POST url/chat/completions``, one user message a question.

    What fails for good (a refused key, a reply without text, retries used up) is an error in the reply and is counted;
    it is never cached and never a verdict.

    Args:
        model: as the endpoint knows it.
        url: of the endpoint, ``/v1`` included.
        key_variable: environment variable with the key; unset where the endpoint wants none.
        temperature: of the replies; a question that is asked again gets 0.5 more each time.
        workers: requests at a time.
        retries: of a request, after 1, 2, 4 … seconds, or what the endpoint asks for.
        timeout: in seconds, of one request.
        cache: folder of replies; None for none.
        pause: seconds before the first retry.
    """

    model: str
    url: str = "https://api.openai.com/v1"
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    workers: int = 8
    retries: int = 5
    timeout: float = 60.0
    cache: str | None = "outputs/judge_cache"
    pause: float = 1.0
    failure: str | None = field(default=None, init=False, repr=False)
    """Why the last question that failed did."""
    last_reply: str | None = field(default=None, init=False, repr=False)
    """What it said last."""
    _counts: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("retries", 0), ("timeout", 0.001)):
            if getattr(self, name) < least:
                raise ValueError(f"judge.{name} must be at least {least}, got {getattr(self, name)}")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"judge.url must begin with http:// or https://, got {self.url!r}")

    @property
    def name(self) -> str:
        """Model and decoding."""
        return f"{self.model} (temperature {self.temperature:g})"

    def usage(self) -> dict[str, int]:
        """Requests sent, replies from the cache, tokens of prompts and replies, failures."""
        names = ("requests", "cached", "prompt_tokens", "completion_tokens", "failures")
        return {name: self._counts[name] for name in names}

    def ask(self, requests: Sequence[JudgeRequest]) -> list[Reply]:
        """One reply a request, in order."""
        import httpx

        if not requests:
            return []
        key = os.environ.get(self.key_variable, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with (
            httpx.Client(timeout=self.timeout, headers=headers) as client,
            ThreadPoolExecutor(max_workers=self.workers) as pool,
        ):
            return list(pool.map(lambda request: self._reply(client, request), requests))

    def _reply(self, client: Any, request: JudgeRequest) -> Reply:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": _sendable(request.text)}],
            "temperature": self.temperature + 0.5 * request.attempt,
            "max_tokens": request.max_tokens,
        }
        path = self._cache_path(body)
        if path is not None and path.is_file():
            self._count(cached=1)
            cached = Reply(json.loads(path.read_text(encoding="utf-8"))["text"])
            self.last_reply = cached.text
            return cached
        reply = self._request(client, body)
        if reply.text is None:
            self._count(failures=1)
            self.failure = f"{reply.error} from {self.url}"
            return reply
        self.last_reply = reply.text
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(f".{os.getpid()}.{id(reply)}")
            draft.write_text(json.dumps({"text": reply.text, "request": body}), encoding="utf-8")
            draft.replace(path)
        return reply

    def _request(self, client: Any, body: dict[str, Any]) -> Reply:
        import httpx

        error = ""
        for attempt in range(self.retries + 1):
            wait = self.pause * 2**attempt
            try:
                self._count(requests=1)
                answer = client.post(f"{self.url.rstrip('/')}/chat/completions", json=body)
                if answer.status_code == 200:
                    return self._read(answer)
                error = f"status {answer.status_code}"
                if answer.status_code not in _AGAIN:
                    break
                wait = _asked_for(answer.headers.get("retry-after"), wait)
            except httpx.HTTPError as failure:
                error = type(failure).__name__
            if attempt < self.retries:
                time.sleep(wait)
        return Reply(None, error)

    def _read(self, answer: Any) -> Reply:
        try:
            content = answer.json()
            text = content["choices"][0]["message"]["content"]
            usage = content.get("usage") or {}
            self._count(**{name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")})
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return Reply(None, "a reply that is no chat completion")
        return Reply(text) if isinstance(text, str) and text.strip() else Reply(None, "an empty reply")

    def _cache_path(self, body: dict[str, Any]) -> Path | None:
        if self.cache is None:
            return None
        key = hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
        return Path(self.cache).expanduser() / key[:2] / f"{key}.json"

    def _count(self, **counts: int) -> None:
        with self._lock:
            self._counts.update(counts)


def _sendable(text: str) -> str:
    """`text` with "?" for half of a surrogate pair, which recorded answers end in where they were cut within a sign."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _asked_for(header: str | None, otherwise: float) -> float:
    try:
        return min(60.0, max(0.0, float(header)))
    except (TypeError, ValueError):
        return otherwise
