"""Which of a run's processes this is, as whoever started them says: Lightning itself, torchrun or SLURM's srun.

Read from the environment, since files must be written, and mistakes found, before the processes know each other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode


@dataclass(frozen=True, slots=True)
class Place:
    """A process among those that train together."""

    launcher: str
    """What started them: "Lightning", "torchrun" or "SLURM"."""
    node: int
    local_rank: int
    """Among the processes of its node."""
    rank: int | None
    """Among all; None where Lightning starts them, which counts them later."""
    world_size: int | None
    """How many there are; None likewise."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0 if self.rank is not None else self.node == self.local_rank == 0

    @property
    def from_outside(self) -> bool:
        """Whether somebody else started it, among others, with a command line that is its own."""
        return self.world_size is not None and self.world_size > 1


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """This process's. torchrun and srun tell each process; Lightning's own launcher tells those that it starts.

    SLURM counts only where it started several tasks, and not in an interactive shell, as for Lightning.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        node, local, rank, world = (
            int(environment[name]) for name in ("GROUP_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE")
        )
        return Place("torchrun", node, local, rank, world)
    interactive = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environment and not interactive:
        node, local, rank, world = (
            int(environment[name]) for name in ("SLURM_NODEID", "SLURM_LOCALID", "SLURM_PROCID", "SLURM_NTASKS")
        )
        return Place("SLURM", node, local, rank, world)
    return Place(
        "Lightning", int(environment.get("NODE_RANK", "0")), int(environment.get("LOCAL_RANK", "0")), None, None
    )


def main_process() -> bool:
    """Whether this is the process that writes files and speaks."""
    return place().is_first


def log_apart(here: Place) -> None:
    """Give each but the first of processes that were started from outside a log file of its own."""
    if not here.from_outside or here.is_first:
        return
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]:
        file = Path(handler.baseFilename)
        own = logging.FileHandler(file.with_name(f"{file.stem}_process_{here.rank}{file.suffix}"))
        own.setFormatter(handler.formatter)
        own.setLevel(handler.level)
        root.removeHandler(handler)
        handler.close()
        root.addHandler(own)


def check_launch(processes: int, nodes: int) -> None:
    """Whether the processes that were started are the ones that the settings speak of, and will agree on a folder.

    Args:
        processes: as the settings have it, on all nodes together.
        nodes: `trainer.num_nodes`.

    Raises:
        ValueError: if others were started; if several command lines leave the run's folder to the clock.
    """
    here = place()
    if here.from_outside and here.world_size != processes:
        raise ValueError(
            f"{here.launcher} started {here.world_size} processes and the settings ask for {processes}: set "
            "trainer.devices to those of a node, and trainer.num_nodes"
        )
    if (here.from_outside or nodes > 1) and not _folder_is_named():
        raise ValueError(
            "hydra.run.dir must be set where processes are started apart: add hydra.run.dir=FOLDER, one that all nodes "
            "see"
        )


def _folder_is_named() -> bool:
    """Whether the command line says where the run goes, or there is none (a sweep's jobs are told)."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.RUN:
        return True
    return any(override.startswith("hydra.run.dir=") for override in HydraConfig.get().overrides.hydra)
