"""What the libraries are told before they are imported, and how much of what they log reaches the terminal."""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping

from atrl.allocator import keep_freed_memory

ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # forked workers would otherwise deadlock or warn
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRITON_F32_DEFAULT": "ieee",  # vLLM's attention in float32 would otherwise round its products to TF32
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait starve the sampler's on a busy machine
}
"""Set before the libraries are imported, where the user has not set them."""

QUIET_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "WANDB_SILENT": "true",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""Set likewise, unless the config says ``verbose: true``."""

CHATTY_LIBRARIES = ("datasets", "filelock", "fsspec", "httpx", "lightning", "matplotlib", "torch", "urllib3", "wandb")
"""Loggers of which the console shows warnings and errors only."""


def set_environment() -> None:
    """What every program of atrl sets: variables, which the processes that it starts inherit, and its own heap."""
    _set_defaults(os.environ, ENVIRONMENT)
    keep_freed_memory()


def quieten_libraries() -> None:
    """Keep the libraries to their errors, where the user has not asked them for more."""
    _set_defaults(os.environ, QUIET_ENVIRONMENT)


def quieten_console() -> None:
    """Show no more of what is logged than is worth it; files keep all."""
    # A filter of the handler outlasts the level that Lightning sets for its loggers when it is imported.
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.addFilter(_worth_showing)


def _set_defaults(environment: MutableMapping[str, str], defaults: dict[str, str]) -> None:
    for name, value in defaults.items():
        environment.setdefault(name, value)


def _worth_showing(record: logging.LogRecord) -> bool:
    library = record.name.partition(".")[0]
    if library == "vllm":  # warns of every feature that a platform lacks
        return record.levelno >= logging.ERROR
    return record.levelno >= logging.WARNING or library not in CHATTY_LIBRARIES
