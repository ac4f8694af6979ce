"""One training run whose steps take turns between kinds of credit; for `credit_overhead.py`, `late_worker.py`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from device import wait_for_device
from hydra import compose, initialize_config_dir
from lightning import Callback

from atrl import pipeline, stages
from atrl.callbacks.rollout import RolloutCallback
from atrl.credit.atrl import AtrlCredit
from atrl.credit.bound import BoundCredit, PictureScale
from atrl.credit.probe import AttentionProbe
from atrl.data.loader import PromptLoader
from atrl.rollout.bound import RolloutSource
from atrl.types import Prompt, RolloutGroup

if TYPE_CHECKING:
    from omegaconf import DictConfig

WARM_UP = 3
"""Rounds that are not counted: the first calls of kernels and of the engine."""


@dataclass(frozen=True)
class Taken:
    """Per variant, one number a counted round."""

    seconds: dict[str, list[float]]
    """Of the whole training step."""
    credit_seconds: dict[str, list[float]]
    """Of the phase `credit` in it."""
    rollout_seconds: dict[str, list[float]]
    """Of the phase `rollout`, which is over before credit begins; all but nothing where a variant was handed them."""


class DrawnOnce:
    """Rollouts of another source; asked again for those it gave last, it gives the same ones."""

    def __init__(self, source: RolloutSource) -> None:
        self._source = source
        self._asked: str | None = None
        self._groups: list[RolloutGroup] = []

    def generate(self, prompts: Sequence[Prompt], *, seed: str) -> list[RolloutGroup]:
        """A group of rollouts for every prompt; a seed is asked with the same prompts always."""
        if self._asked != seed:
            self._asked, self._groups = seed, self._source.generate(prompts, seed=seed)
        return self._groups

    def rest(self) -> None:
        """As the source does."""
        self._source.rest()

    def update_weights(self, parameters, version: int) -> None:
        """As the source does."""
        self._source.update_weights(parameters, version)


class Rotate(Callback):
    """Changes the credit before each step and takes its time; the weights stay what they are."""

    def __init__(self, schemes: Mapping[str, AtrlCredit | None], loaded) -> None:
        pictures = loaded.processor.image_processor
        self._scale = PictureScale(tuple(pictures.image_mean), tuple(pictures.image_std))
        self._tokenizer, self._model = loaded.processor.tokenizer, loaded.model
        self._schemes, self._names = schemes, tuple(schemes)
        self._probes: dict[str, AttentionProbe] = {}  # kept, as in a run: what masks they have looked at is known
        self.taken = Taken(*({name: [] for name in schemes} for _ in fields(Taken)))

    def on_fit_start(self, trainer, pl_module) -> None:
        pl_module.rollouts = DrawnOnce(pl_module.rollouts)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        number, place = divmod(batch_idx, len(self._names))
        self._name = self._names[(place + number) % len(self._names)]
        pl_module.steps_done = number  # the same seed for all of a round
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 0.0
        scheme = self._schemes[self._name]
        self._probe = None if scheme is None else self._attached(scheme)
        pl_module.credit = scheme and BoundCredit(scheme, self._probe, self._scale, self._tokenizer)
        pl_module.timer.lap()
        wait_for_device()
        self._start = time.perf_counter()

    def _attached(self, scheme: AtrlCredit) -> AttentionProbe:
        if self._name in self._probes:
            self._probes[self._name].attach()
        else:
            self._probes[self._name] = AttentionProbe(self._model, scheme.requests)
        return self._probes[self._name]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        wait_for_device()
        self.taken.seconds[self._name].append(time.perf_counter() - self._start)
        phases = pl_module.timer.lap()
        self.taken.credit_seconds[self._name].append(phases.get("credit", 0.0))
        self.taken.rollout_seconds[self._name].append(phases["rollout"])
        if self._probe is not None:
            self._probe.detach()


class Repeated(PromptLoader):
    """Every batch `times` times."""

    def __init__(self, *arguments, times: int, **options) -> None:
        super().__init__(*arguments, **options)
        self._times = times

    def __len__(self) -> int:
        return self._times * self._steps

    def __iter__(self):
        for batch in super().__iter__():
            yield from [batch] * self._times


def composed(overrides: Sequence[str], folder: str) -> DictConfig:
    """The demo's settings without credit, which `Rotate` binds."""
    conf = str(Path(__file__).resolve().parents[1] / "conf")
    with initialize_config_dir(conf, version_base="1.3"):
        own = ["logger=csv", f"logger.csv.save_dir={folder}", "credit=none"]
        return compose("train", overrides=[*own, *overrides])


def train_in_rotation(schemes: Mapping[str, AtrlCredit | None], rounds: int, overrides: Sequence[str]) -> Taken:
    """The demo's run with `rounds` counted rounds of one step by each of the schemes."""
    with tempfile.TemporaryDirectory() as folder:
        parts = pipeline.instantiate_parts(composed(overrides, folder), Path(folder))
        pipeline.prepare_process(parts)
        loaded = parts.model.load(Path(folder) / "model")
        builder = parts.rollout.prompt_builder(loaded, parts.model.instruction)
        size = parts.rollout.prompts_per_step
        counts = {"batch_size": size, "steps": rounds + WARM_UP, "times": len(schemes)}
        loader = Repeated(parts.source.load("train"), builder, seed=0, **counts)
        rotate = Rotate(schemes, loaded)
        for scheme in filter(None, schemes.values()):
            scheme.open()
        handle = parts.rollout.handle(loaded, [])
        sampler = RolloutCallback(parts.rollout, parts.rollout.sampling, handle, folder=Path(folder), rescue=str)
        callbacks = [sampler, rotate]
        stages.fit(parts, stages.policy_module(parts, loaded), loader, callbacks, enable_progress_bar=False)
        for scheme in filter(None, schemes.values()):
            scheme.close()
    of_each = (getattr(rotate.taken, field.name) for field in fields(Taken))
    return Taken(*({name: values[WARM_UP:] for name, values in taken.items()} for taken in of_each))
