"""A training run, part by part: components, data, model, stages, and what the run leaves."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from atrl.config import COMPONENTS, check_config, read_section
from atrl.launch import check_launch, main_process, place
from atrl.preflight import (
    check_attention,
    check_devices,
    check_engine,
    check_layers,
    check_lengths,
    check_masks,
    check_pictures,
    check_reading,
    check_reads,
    check_targets,
    check_videos_taken,
)
from atrl.process_checks import check_processes
from atrl.sections import OptimizerSettings, RunSettings, SftSettings, TrainerSettings

if TYPE_CHECKING:
    from atrl.checkpoint import Checkpoint
    from atrl.data.base import Baseline, ProblemSource
    from atrl.loss.objective import Objective
    from atrl.models.load import LoadedModel, PretrainedModel, ScratchModel
    from atrl.models.smollm2 import SmolLM2Model
    from atrl.rewards.weighted import WeightedReward
    from atrl.rollout.settings import RolloutSettings
    from atrl.types import Problem


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Everything that the config names, built and checked; nothing heavy is loaded yet."""

    folder: Path
    settings: dict[str, Any]
    """The config as plain values."""
    run: RunSettings
    trainer: TrainerSettings
    optimizer: OptimizerSettings
    sft: SftSettings
    source: ProblemSource
    model: PretrainedModel | ScratchModel | SmolLM2Model
    rollout: RolloutSettings
    reward: WeightedReward
    objective: Objective
    credit: Any
    logger: list[Any]
    callbacks: list[Any]
    started: float


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """The problems of a run, their answers known to be readable by the reward."""

    train: Sequence[Problem]
    selection: Sequence[Problem]
    test: Sequence[Problem]
    baseline: Baseline | None


def prepare_process(parts: Parts) -> None:
    """Seed the global generators and set the number of threads.

    Every random choice of a run has a generator of its own; the global ones are seeded for libraries that use them.
    """
    import faulthandler

    import torch
    from lightning import seed_everything

    if not faulthandler.is_enabled():
        faulthandler.enable()  # a crash in C code says where it was
    threads = parts.trainer.threads or (1 if parts.trainer.deterministic else None)  # their number changes bits too
    if threads is not None:
        torch.set_num_threads(threads)
    seed_everything(parts.run.seed, verbose=False)
    if not parts.run.verbose:
        _quieten_lightning()


def processes(settings: TrainerSettings) -> int:
    """How many processes the settings ask for, on all nodes together."""
    import torch

    if isinstance(settings.devices, int):
        return settings.devices * settings.num_nodes
    every = max(1, torch.cuda.device_count()) if settings.accelerator != "cpu" else 1  # on the CPU one process
    return every * settings.num_nodes


def work_folder(folder: Path) -> Path:
    """Where this process may put a model that it builds; processes would disturb each other in one place."""
    here = place()
    return folder / ("initial_model" if here.is_first else f"initial_model_{here.node}_{here.local_rank}")


def instantiate_parts(config: DictConfig, folder: Path) -> Parts:
    """Check the config and build what it names.

    Raises:
        ValueError: one line for everything that is wrong with it.
    """
    from atrl.settings import settings_of

    check_config(config)
    started = time.time()
    parts = Parts(
        folder=folder,
        settings=settings_of(config),
        run=read_section(config, RunSettings),
        trainer=read_section(config.trainer, TrainerSettings),
        optimizer=read_section(config.optimizer, OptimizerSettings),
        sft=read_section(config.sft, SftSettings),
        source=_built(config, "data"),
        model=_built(config, "model"),
        rollout=_built(config, "rollout"),
        reward=_built(config, "reward"),
        objective=_built(config, "algorithm"),
        credit=_built(config, "credit") if config.credit else None,
        logger=[_built(config, "logger", name) for name in config.logger or {}],
        callbacks=[_built(config, "callbacks", name) for name in config.callbacks or {}],
        started=started,
    )
    parts.model.check()
    check_lengths(parts.rollout, parts.model.positions())
    if parts.run.stage != "sft":
        check_reads(parts.credit)
        check_attention(parts.credit, parts.model)
        check_layers(parts.credit, parts.model)
        check_masks(parts.credit, parts.model.model_type())
        check_engine(parts.rollout.sampler, processes(parts.trainer))
        parts.rollout.sampler.check(parts.model.model_type())
    check_devices(parts.trainer)
    check_processes(config, processes(parts.trainer))
    check_launch(processes(parts.trainer), parts.trainer.num_nodes)
    return parts


def _built(config: DictConfig, group: str, name: str | None = None) -> Any:
    """The component of `group`, or that of its components which is called `name`.

    Raises:
        ValueError: if what is named in ``_target_`` made something else, as a function may.
    """
    from hydra.utils import instantiate

    from atrl.kinds import misfit
    from atrl.schema import locate

    node = config[group] if name is None else config[group][name]
    made = instantiate(node)
    reason = misfit(type(made), tuple(cast("type", locate(kind)) for kind in COMPONENTS[group]))
    if reason is not None:
        raise ValueError(
            f"{group if name is None else f'{group}.{name}'}._target_: {node._target_} made a {type(made).__name__}, "
            f"which {reason}: name a class, or a function that returns such a thing"
        )
    return made


def starting_point(config: DictConfig, parts: Parts, data: Data) -> Checkpoint | None:
    """The checkpoint that the run goes on from; the run's files are cut back to it, and later checkpoints set aside.

    Raises:
        ValueError: if it can't be found, or is of a run with other settings, or of adapters to another model or with
            another reference; the run's files are then as they were.
    """
    from atrl.reference import check_reference
    from atrl.resume import (
        ABANDONED,
        check_same_base,
        check_same_run,
        find_checkpoint,
        is_finished,
        keep_until,
        set_aside_later,
    )

    start = find_checkpoint(parts.run.resume, parts.folder)
    if start is not None:
        check_same_run(start, config, data.train, allow=parts.run.resume_allow)
        if parts.run.stage == "sft_rl" and parts.objective.kl_coefficient > 0:
            check_reference(start)
        base = parts.model.weights_folder()
        if base is not None:
            check_same_base(start, base)
    if parts.run.resume is not None and main_process():
        done, last = 0 if start is None else start.step, parts.trainer.max_steps
        ends_again = start is not None and done >= last and not is_finished(parts.folder, start, last)
        keep_until(parts.folder, done, ends_again=ends_again)
        later = [] if start is None else set_aside_later(parts.folder, start)
        if later:
            print(f"{', '.join(later)}: set aside in checkpoints/{ABANDONED}, since their steps are done again")
    return start


def write_settings(config: DictConfig, folder: Path) -> None:
    """Leave `config.yaml`, how it was composed, `command.txt`, and what code of one's own was."""
    from atrl.composed import Composed
    from atrl.own_code import own_sources, write_sources

    if not main_process():
        return
    write_sources(folder, own_sources(config))
    OmegaConf.save(OmegaConf.create(OmegaConf.to_container(config, resolve=True)), folder / "config.yaml")
    if (composed := Composed.now(config)) is not None:
        composed.write(folder)
    (folder / "command.txt").write_text(f"python {shlex.join(sys.argv)}\n", encoding="utf-8")


def settings_to_keep(config: DictConfig, data: Data, loaded: LoadedModel) -> dict[str, Any]:
    """What checkpoints hold so that another run is not taken for the same, nor another model for what they need of it:
    the weights beside their adapters, or the reference of a KL term.
    """
    from atrl.models.lora import has_adapters
    from atrl.own_code import own_sources
    from atrl.resume import fingerprint, weights_fingerprint
    from atrl.settings import settings_of

    compared = (OmegaConf.select(config, "algorithm.kl_coefficient") or 0) > 0 and config.stage == "rl"
    base = {"base": weights_fingerprint(loaded.folder)} if has_adapters(loaded.model) or compared else {}
    return {"config": settings_of(config), "data": fingerprint(data.train), "sources": own_sources(config)} | base


def _quieten_lightning() -> None:
    """Keep what says nothing about the run out of the terminal: advice, and warnings of what is done on purpose."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*Experiment logs directory .* exists and is not empty.*",  # Hydra made the run's folder just before
        ".*LeafSpec.*is deprecated.*",  # between Lightning and torch
        ".*does not have many workers.*",  # prompts are cheap beside a step
        ".*IterableDataset.*",
        ".*returned a view tensor.*",  # of FSDP's: logits, which nothing changes in place
        ".*all_gather_into_tensor.* is deprecated.*",  # between vLLM and torch
    ):
        warnings.filterwarnings("ignore", message=message)


def _held_out(parts: Parts) -> Sequence[Problem]:
    settings = parts.trainer
    if not settings.evaluate_samples:
        return []
    return parts.source.load(settings.evaluate_split)[: settings.evaluate_samples]


def load_data(parts: Parts) -> Data:
    """Load the problems and make sure that every picture, video and answer can be read.

    Raises:
        ValueError: if one can't be, naming it; if a split that is needed is empty; if credit needs what they don't say
            or show, or a warm-up worked answers that they don't have; if they have videos that model or sampler don't
            take.
    """
    from atrl.data.images import check_images
    from atrl.data.videos import check_videos

    warms_up = parts.run.stage != "rl"
    splits = {
        "train": parts.source.load("train"),
        "selection": parts.source.load("selection") if warms_up else [],
        "test": _held_out(parts),
    }
    for problems in splits.values():
        # Generated problems are right by construction, and drawing all of them just to look would take long.
        if isinstance(problems, list):
            check_images(problems)
            check_videos(problems)
            parts.reward.check(problems)
        check_videos_taken(problems, parts.model.model_type(), parts.rollout.sampler)
    if warms_up:
        check_targets(splits["train"])
    if parts.run.stage != "sft":
        check_reading(parts.credit, splits["train"])
        check_pictures(parts.credit, splits["train"])
    return Data(**splits, baseline=parts.source.baseline())
