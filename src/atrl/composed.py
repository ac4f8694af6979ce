"""How a run's settings came about: its overrides, the option of each group, and what refers to another setting."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from atrl.settings import flat, plain

FILE, HYDRAS = "composed.json", ".hydra"


@dataclass(frozen=True, slots=True)
class Composed:
    """What Hydra composed for a run.

    Attributes:
        overrides: the command line's, of the config; None where it isn't known.
        choices: the option that was taken of each config group.
        interpolations: by dotted key, settings that follow from others, as they were written.
    """

    overrides: list[str] | None = None
    choices: dict[str, str | None] = field(default_factory=dict)
    interpolations: dict[str, str] = field(default_factory=dict)

    @classmethod
    def now(cls, config: DictConfig) -> Composed | None:
        """That of the running program, whose config is `config`; None where Hydra did not start it."""
        from hydra.core.hydra_config import HydraConfig

        if not HydraConfig.initialized():
            return None
        hydra = HydraConfig.get()
        return cls(
            list(hydra.overrides.task), dict(hydra.runtime.choices), _interpolations(plain(config, resolve=False))
        )

    def write(self, folder: Path) -> None:
        """Leave `composed.json` in a run's folder."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Composed:
        """That of the run in `folder`.

        Hydra's own record is of the command that was last given for the folder, also of one that was refused because
        the run there has other settings. So it counts only for runs of before, which left nothing else.

        Raises:
            ValueError: if a file is broken.
        """
        file = folder / FILE
        if file.is_file():
            try:
                return cls(**json.loads(file.read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{file} can't be read ({error}): delete it") from None
        choices = OmegaConf.select(OmegaConf.create(read_yaml(folder / HYDRAS / "hydra.yaml")), "hydra.runtime.choices")
        return cls(
            read_yaml(folder / HYDRAS / "overrides.yaml", absent=None),
            dict(choices or {}),
            _interpolations(read_yaml(folder / HYDRAS / "config.yaml")),
        )


def read_yaml(path: Path, absent: Any = ()) -> Any:
    """The content of a YAML file, interpolations as they stand; `absent`, or else an empty mapping, where it isn't.

    Raises:
        ValueError: naming the file, if it is broken.
    """
    if not path.is_file():
        return {} if absent == () else absent
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read: {' '.join(str(error).split())}") from None


def _interpolations(settings: Any) -> dict[str, str]:
    return {key: value for key, value in flat(settings).items() if isinstance(value, str) and "${" in value}
