"""The planner's memory against what a real training step holds, in bytes of live tensors."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import Callback

from atrl.plan.job import Job
from atrl.plan.memory import plan_memory
from atrl.plan.read import hardware_of, job_of
from tests.integration.conftest import compose_config
from tests.unit.live_bytes import LiveBytes

TOLERANCE = 0.1
LARGER = {
    "text_config": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8},
    "vision_config": {"hidden_size": 128, "intermediate_size": 352, "depth": 3, "out_hidden_size": 256},
}
WIDE_VOCABULARY = LARGER | {"text_config": LARGER["text_config"] | {"vocab_size": 20000}}


class PhasePeaks(Callback):
    """The most bytes alive in each phase of the last step, and the lengths of its batch."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        states = pl_module.optimizers(use_pl_optimizer=False).state.values()
        known = [*pl_module.policy.parameters(), *pl_module.policy.buffers()]
        known += [] if pl_module.reference is None else [*pl_module.reference.parameters()]
        known += [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
        self.live, self.peaks = LiveBytes(known), {}
        pl_module.timer.phase = self._phase(pl_module.timer.phase)
        self.live.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.live.__exit__(None, None, None)
        del pl_module.timer.phase
        experience = pl_module.last_step.experience
        self.prompt, self.response = experience.prompt_length, experience.response_length
        self.patches = len(experience.pixels[0]["pixel_values"])

    def _phase(self, original):
        @contextmanager
        def phase(name: str):
            outer, self.live.peak = self.live.peak, self.live.now
            with original(name):
                yield
            self.peaks[name] = max(self.peaks.get(name, 0), self.live.peak)
            self.live.peak = max(self.live.peak, outer)

        return phase


def random_checkpoint(folder: Path, sizes: dict) -> Path:
    """The tiny model's checkpoint with other sizes and random weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    from atrl.models import scratch

    scratch.build(folder)
    config = json.loads((folder / "config.json").read_text())
    for part, values in sizes.items():
        config[part] |= values
    config["text_config"].pop("layer_types", None)
    with torch.random.fork_rng():
        AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config)).float().save_pretrained(folder)
    return folder


def planned(watch: PhasePeaks, overrides: tuple[str, ...], folder: Path) -> Job:
    """The job that the config describes, with the lengths that the step turned out to have."""
    job = job_of(compose_config(folder, *overrides))
    image = watch.patches // job.model.vision.patches_per_token
    lengths = replace(job.lengths, prompt=watch.prompt, image=image, response=watch.response)
    return replace(job, lengths=lengths)


CASES = {
    "tiny": ((), None),
    "no credit": (("credit=none",), None),
    "a micro-batch waits for its clusters": (("optimizer.micro_batch_size=4",), None),
    "larger": ((), LARGER),
    "wide vocabulary, several micro-batches": (("optimizer.micro_batch_size=4", "credit.workers=0"), WIDE_VOCABULARY),
    "reference": (("algorithm.kl_coefficient=0.1", "rollout.prompts_per_step=2"), WIDE_VOCABULARY),
    "frozen vision tower": (("model.freeze_vision=true",), LARGER),
    "frozen vision tower and projector": (("model.freeze_vision=true", "model.freeze_projector=true"), LARGER),
    "adapters": (("model/lora=language",), None),
    "adapters, compared without them": (("model/lora=language", "algorithm.kl_coefficient=0.1"), LARGER),
    "adapters everywhere": (("model/lora=everything", "credit=none"), LARGER),
    "adapters on bfloat16 weights": (("model/lora=language", "model.dtype=bfloat16", "credit=none"), LARGER),
    "adapters under autocast": (("model/lora=language", "trainer.precision=bf16-mixed", "credit=none"), LARGER),
    "bfloat16 weights": (("model.dtype=bfloat16",), LARGER),
    "autocast": (("trainer.precision=bf16-mixed",), LARGER),
    "masked picture, with a gradient": (("credit=papo",), None),
    "masked picture, scored first": (("credit=vppo", "rollout.prompts_per_step=2"), WIDE_VOCABULARY),
    "checkpointing": (("credit=none", "trainer.activation_checkpointing=true"), LARGER),
}


QUICK = ("tiny", "no credit", "a micro-batch waits for its clusters", "reference", "autocast", "adapters")
"""What `make test` looks at; `make test-all` takes all."""


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_planned_memory_is_what_a_step_takes(case: str, train, tmp_path: Path) -> None:
    overrides, sizes = CASES[case]
    options = ("rollout=transformers", "trainer.evaluate_samples=0", *overrides)
    if sizes is not None:
        options += (f"model.path={random_checkpoint(tmp_path / 'checkpoint', sizes)}",)
    watch = PhasePeaks()
    train(*options, watch=watch)
    hardware = replace(hardware_of(compose_config(tmp_path, *options)), reserved_gib=0.0)
    plan = plan_memory(planned(watch, options, tmp_path), hardware)
    update = max(watch.peaks[name] for name in ("score", "credit", "update"))
    print(f"\n{case}: planned {max(plan.total('update'), plan.total('step')):.3e} bytes, measured {update:.3e}")
    assert max(plan.total("update"), plan.total("step")) == pytest.approx(update, rel=TOLERANCE)
    assert plan.total("rollout") == pytest.approx(watch.peaks["rollout"], rel=TOLERANCE)
