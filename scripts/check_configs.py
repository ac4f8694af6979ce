"""Composes every option of every group, and every experiment, and checks it as a run would; loads nothing heavy.

`python scripts/check_configs.py` prints a line for everything that is wrong, and ends with exit code 1 if there is any.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import read_write

from atrl.config import ROOTS, check_config

CONFIGS = Path(__file__).resolve().parents[1] / "conf"
PROGRAMS = {"train": ("credit", "algorithm", "callbacks", "data", "hardware", "logger", "model", "reward", "rollout",
                      "trainer", "scale", "experiment"), "evaluate": ("benchmark", "judge")}  # fmt: skip
TOGETHER = {
    "train": {"": ["plan=true"], "algorithm=gspo": ["credit=uniform"], "scale=full_32b_32x80": ["experiment=mmk12"]},
    "evaluate": {},
}
"""What an option needs beside it, and under "" what every one gets: a plan takes settings that no run would."""
LEFT_TO_THE_USER = " is not set: add "


def choices() -> Iterator[tuple[str, str]]:
    """Program and override, for every option."""
    for program, groups in PROGRAMS.items():
        yield program, ""
        for group in groups:
            folder = CONFIGS / group if group != "experiment" else CONFIGS.parent / "experiments"
            for file in sorted(folder.rglob("*.yaml")):
                parent = file.parent.relative_to(folder).as_posix()
                yield program, f"{group if parent == '.' else f'{group}/{parent}'}={file.stem}"


def problems(program: str, override: str) -> list[str]:
    """What a run with this option would be refused for, but for values that the user is to give."""
    beside = [*TOGETHER[program].get("", []), *(TOGETHER[program].get(override, []) if override else [])]
    try:
        config = compose(program, [*filter(None, [override]), *beside], return_hydra_config=True)
        with read_write(config):
            config.hydra.runtime.output_dir = "outputs"
        HydraConfig.instance().set_config(config)
        check_config(config, sections=ROOTS[program], checks=None if program == "train" else ())
    except (HydraException, ValueError) as error:
        lines = [line for line in str(error).splitlines() if LEFT_TO_THE_USER not in line]
        return [f"{program} {override}: {line}" for line in lines]
    return []


def main() -> int:
    """Check all."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        looked_at = list(choices())
        found = [line for program, override in looked_at for line in problems(program, override)]
    print("\n".join(found) or f"{len(looked_at)} configs compose and fit what they name")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
