"""One replay: the run's settings, the nearest checkpoint, the recorded responses, and a table of what came out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from atrl.checkpoint import STATE, Checkpoint, read_checkpoint
from atrl.config import check_config, read_section
from atrl.replay.settings import ReplaySettings
from atrl.replay.step_file import RecordedStep, read_step

if TYPE_CHECKING:
    from lightning import Callback

    from atrl.pipeline import Data, Parts
    from atrl.replay.compare import Difference


def replay(config: DictConfig, folder: Path) -> bool:
    """Compute step `config.step` of `config.run` again, print the table, and say whether all agrees.

    Training goes forward with the recorded responses from the newest checkpoint before the step, or from the start;
    nothing is sampled unless `config.sample` asks for it.

    Raises:
        ValueError: if the settings or what the run left can't be used; before any model loads.
    """
    from atrl import pipeline

    check_config(config, sections={"": ReplaySettings})
    settings = read_section(config, ReplaySettings)
    run = Path(settings.run).expanduser()
    recorded, facts = read_step(run, settings.step)
    parts = pipeline.instantiate_parts(_settings_of(run, facts), folder)
    start = None if parts.run.stage != "rl" else _checkpoint_before(run, settings.step)
    for step in range(1 if start is None else start.step + 1, settings.step):
        read_step(run, step)
    parts = replace(parts, credit=_with_heads(parts.credit, run))
    pipeline.prepare_process(parts)
    data = pipeline.load_data(parts)
    try:
        found, texts = _compute(settings, run, parts, data, recorded, start)
    finally:
        parts.reward.close()
    return _report(settings, recorded, facts, start, found, texts)


def _compute(
    settings: ReplaySettings, run: Path, parts: Parts, data: Data, recorded: RecordedStep, start: Checkpoint | None
) -> tuple[dict[int, list[Difference]], list[Difference]]:
    """What differs by step; and of the step that was asked for, what the other records say."""
    from atrl import stages
    from atrl.callbacks.anchor_credit import AnchorCreditCallback
    from atrl.callbacks.progress import StepProgressBar
    from atrl.callbacks.start import StartCallback
    from atrl.data.loader import PromptLoader
    from atrl.replay.compare import compare_with_text
    from atrl.replay.rollouts import RecordedRollouts, ReplayCallback
    from atrl.rollout.bound import BoundRollouts

    loaded = parts.model.load(parts.folder / "initial_model")
    if parts.run.stage != "rl":
        stages.warm_up(parts, data, loaded)
    builder = parts.rollout.prompt_builder(loaded, parts.model.instruction)
    loader = PromptLoader(
        data.train, builder, batch_size=parts.rollout.prompts_per_step, steps=settings.step, seed=parts.run.seed
    )
    module = stages.policy_module(parts, loaded, stream=loader)
    handle = parts.rollout.handle(loaded, data.train)
    sampler = None
    if settings.sample:
        sampler = BoundRollouts(parts.rollout.sampler, stages.training_sampling(parts))
        sampler.sampler.start(handle)
    rollouts = RecordedRollouts(run, handle, sampler=sampler, target=settings.step)
    replaying = ReplayCallback(run, rollouts)
    callbacks: list[Callback] = [replaying, StepProgressBar()]
    if start is not None:
        callbacks.insert(0, StartCallback(start, loader))
    if parts.credit is not None:
        callbacks.append(AnchorCreditCallback(parts.credit, loaded.processor))
    try:
        stages.fit(parts, module, loader, callbacks)
    finally:
        if sampler is not None:
            sampler.sampler.close()
    texts = compare_with_text(run, settings.step, recorded, loaded.processor.tokenizer)
    return replaying.found, texts + rollouts.drawn_again


def _settings_of(run: Path, facts: dict[str, Any]) -> DictConfig:
    """The run's config for one process that logs, evaluates and saves nothing."""
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run} has no config.yaml: name the folder of a run that trained")
    config = OmegaConf.load(path)
    changes = {
        "resume": None,
        "resume_allow": [],
        "trainer": {
            **{"devices": 1, "num_nodes": 1, "strategy": "auto", "cpu_offload": False, "threads": facts["threads"]},
            **{"evaluate_samples": 0, "grounding_samples": 0, "checkpoint_every": None},
        },
    }
    config.logger = {}  # a merge would keep what is in it
    return cast("DictConfig", OmegaConf.merge(config, changes))


def _checkpoint_before(run: Path, step: int) -> Checkpoint | None:
    """The newest one that comes before `step`."""
    folders = sorted((run / "checkpoints").glob("step_*"), reverse=True)
    return next(
        (read_checkpoint(at) for at in folders if (at / STATE).is_file() and int(at.name.removeprefix("step_")) < step),
        None,
    )


def _with_heads(scheme: Any, run: Path) -> Any:
    """`scheme` with the heads that the run found, where it left them open."""
    if scheme is None or scheme.head_search is None:
        return scheme
    path = run / "heads.json"
    if not path.is_file():
        raise ValueError(f"{run} has no heads.json, which says the heads that credit.heads=auto found: copy it there")
    chosen = json.loads(path.read_text(encoding="utf-8"))["chosen"]
    return scheme.with_heads(tuple((layer, head) for layer, head in chosen))


def _report(
    settings: ReplaySettings,
    recorded: RecordedStep,
    facts: dict[str, Any],
    start: Checkpoint | None,
    found: dict[int, list[Difference]],
    texts: list[Difference],
) -> bool:
    """Print the table and the verdict; True where all agrees."""
    from atrl.replay.compare import table

    differences = texts + found[settings.step]
    responses = sum(size for _, size in recorded.prompts)
    since = "the start of the run" if start is None else f"the checkpoint after step {start.step}"
    tokens = len(recorded.tensors["token_ids"])
    print(f"step {settings.step} of {settings.run}: {responses} responses, {tokens} tokens, again from {since}")
    print("\n".join(table(differences)))
    agreeing = {step: all(entry.within(settings.tolerance) for entry in of_step) for step, of_step in found.items()}
    earlier = [step for step, agrees in agreeing.items() if step < settings.step and not agrees]
    if earlier:
        print(f"step {earlier[0]} differs already: python replay.py run={settings.run} step={earlier[0]} shows where")
    if not earlier and all(entry.within(settings.tolerance) for entry in differences):
        exact = not any(entry.differ for entry in differences)
        print("agrees to the bit" if exact else f"agrees to {settings.tolerance:g}")
        return True
    print("differs")
    if facts["processes"] > 1:
        print(
            f"the run had {facts['processes']} processes and this is one: both round alike with trainer.deterministic="
            "true alone, so set a tolerance, such as tolerance=1e-4"
        )
    return False
