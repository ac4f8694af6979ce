"""The settings of `export.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_SIZE = re.compile(r"[1-9]\d*(\.\d+)?(KB|MB|GB)")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """The top level of ``conf/export.yaml``."""

    checkpoint: str
    path: str
    form: str | None = None  # where configuration and processor come from; null is what the run started from
    dtype: Literal["keep", "float32", "bfloat16"] = "keep"
    max_shard_size: str = "5GB"
    overwrite: bool = False
    push_to_hub: str | None = None  # owner/name
    private: bool = True
    trust_remote_code: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a size that can't be read, or a name that no repository can have."""
        if not _SIZE.fullmatch(self.max_shard_size):
            raise ValueError(f"max_shard_size must be a number and KB, MB or GB, as 5GB, got {self.max_shard_size!r}")
        if self.push_to_hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub):
            raise ValueError(f"push_to_hub must be owner/name, got {self.push_to_hub!r}")
