"""Which process this is, by the environment that each launcher leaves."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from atrl import cli, launch
from atrl.launch import Place, check_launch, place

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "1", "LOCAL_RANK": "0", "RANK": "2", "WORLD_SIZE": "4"}
SLURM = {"SLURM_NTASKS": "16", "SLURM_PROCID": "8", "SLURM_NODEID": "1", "SLURM_LOCALID": "0"}
PLACES = {
    "alone": ({}, Place("Lightning", 0, 0, None, None), True),
    "started by Lightning": ({"LOCAL_RANK": "1"}, Place("Lightning", 0, 1, None, None), False),
    "Lightning on a second node": ({"NODE_RANK": "1"}, Place("Lightning", 1, 0, None, None), False),
    "torchrun": (TORCHRUN, Place("torchrun", 1, 0, 2, 4), False),
    "torchrun's first": (TORCHRUN | {"GROUP_RANK": "0", "RANK": "0"}, Place("torchrun", 0, 0, 0, 4), True),
    "torchrun within a job": (SLURM | TORCHRUN, Place("torchrun", 1, 0, 2, 4), False),
    "srun": (SLURM, Place("SLURM", 1, 0, 8, 16), False),
    "srun's first": (SLURM | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}, Place("SLURM", 0, 0, 0, 16), True),
    "one task": (SLURM | {"SLURM_NTASKS": "1"}, Place("Lightning", 0, 0, None, None), True),
    "a batch script before srun": ({"SLURM_NTASKS": "16"}, Place("Lightning", 0, 0, None, None), True),
    "an interactive shell": (SLURM | {"SLURM_JOB_NAME": "bash"}, Place("Lightning", 0, 0, None, None), True),
}


@pytest.mark.parametrize(("environment", "expected", "first"), PLACES.values(), ids=PLACES)
def test_the_environment_says_which_process_this_is(environment, expected, first) -> None:
    assert place(environment) == expected
    assert place(environment).is_first == first


def started(monkeypatch, **fields) -> None:
    values = {"launcher": "torchrun", "node": 0, "local_rank": 1, "rank": 1, "world_size": 2} | fields
    monkeypatch.setattr(launch, "place", lambda: Place(**values))
    monkeypatch.setattr(cli, "place", lambda: Place(**values))


def composed(monkeypatch, *overrides: str, mode: str = "RUN") -> None:
    """As if Hydra ran a job with these overrides of its own."""
    from hydra.types import RunMode

    class Composed:
        initialized = staticmethod(lambda: True)
        get = staticmethod(lambda: OmegaConf.create({"mode": RunMode[mode], "overrides": {"hydra": list(overrides)}}))

    monkeypatch.setattr(launch, "HydraConfig", Composed)


def test_other_processes_than_the_settings_ask_for_are_refused(monkeypatch) -> None:
    composed(monkeypatch, "hydra.run.dir=out")
    started(monkeypatch, world_size=4)
    check_launch(4, 1)
    with pytest.raises(ValueError, match=r"^torchrun started 4 processes and the settings ask for 2: set trainer\.dev"):
        check_launch(2, 1)


@pytest.mark.parametrize(("nodes", "world"), [(1, 2), (2, None)], ids=["torchrun", "Lightning on two nodes"])
def test_processes_started_apart_need_one_folder(monkeypatch, nodes: int, world: int | None) -> None:
    started(monkeypatch, world_size=world, rank=None if world is None else 1)
    composed(monkeypatch, "hydra.run.dir=out")
    check_launch(2, nodes)
    composed(monkeypatch, "hydra.mode=RUN")
    with pytest.raises(ValueError, match=r"^hydra\.run\.dir must be set where processes are started apart"):
        check_launch(2, nodes)


def test_processes_that_lightning_starts_are_told_their_folder(monkeypatch) -> None:
    started(monkeypatch, launcher="Lightning", rank=None, world_size=None)
    composed(monkeypatch)
    check_launch(2, 1)
    with pytest.raises(ValueError, match=r"^hydra\.run\.dir must be set"):  # it starts none on another node
        check_launch(2, 2)


def test_each_process_logs_to_a_file_of_its_own(monkeypatch, tmp_path: Path) -> None:
    root = logging.getLogger()
    shared = logging.FileHandler(tmp_path / "train.log")
    shared.setFormatter(logging.Formatter("<%(message)s>"))
    monkeypatch.setattr(root, "handlers", [shared])
    launch.log_apart(Place("torchrun", 0, 0, 0, 2))
    assert root.handlers == [shared]
    launch.log_apart(Place("Lightning", 0, 1, None, None))  # whose file has a name of Lightning's
    assert root.handlers == [shared]
    launch.log_apart(Place("torchrun", 0, 1, 1, 2))
    logging.getLogger("some").error("late")
    assert (tmp_path / "train_process_1.log").read_text() == "<late>\n"
    assert (tmp_path / "train.log").read_text() == ""
    for handler in root.handlers:
        handler.close()


def test_an_error_says_which_process_it_is_of(monkeypatch, capsys) -> None:
    started(monkeypatch)
    cli._report("too long")
    assert capsys.readouterr().err == "error (process 1): too long\n"
    started(monkeypatch, rank=0)
    cli._report("too long")
    assert capsys.readouterr().err == "error: too long\n"
    # One of those that Lightning starts, which know no more:
    started(monkeypatch, launcher="Lightning", local_rank=2, rank=None, world_size=None)
    cli._report("too long")
    assert capsys.readouterr().err == "error (process 2): too long\n"
