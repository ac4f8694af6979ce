"""A tiny untrained checkpoint, made once for every test that needs one."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights, tokenizer and processor."""
    from atrl.models import scratch

    return scratch.build(tmp_path_factory.mktemp("checkpoint"), seed=3)


@pytest.fixture(scope="session")
def processor(checkpoint: Path):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(checkpoint)


@pytest.fixture
def policy(checkpoint: Path):
    """A model of its own for each test, with transformers' default kernel."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(checkpoint, attn_implementation="sdpa").eval()
