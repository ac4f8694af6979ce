"""Supervised warm-up: teaches a model the task's form before reinforcement learning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from lightning import Callback
from torch import Tensor

from atrl import parallel
from atrl.alarms import NonFiniteStop, clip_gradients
from atrl.checkpoint import state_tensors
from atrl.data.loader import PromptLoader
from atrl.data.templates import padding_id
from atrl.evaluation.score import Score, score_together
from atrl.experience import collate
from atrl.forward import ForwardPass
from atrl.preflight import check_targets
from atrl.prompt_module import PromptModule
from atrl.sections import SftSettings
from atrl.tracking import log_once
from atrl.types import Experience, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from atrl.rewards.weighted import WeightedReward
    from atrl.rollout.base import Sampler, Sampling


class SupervisedModule(PromptModule):
    """Next-token cross-entropy on the worked answers of problems.

    Args:
        policy: the model that is trained.
        tokenizer: of the policy.
        end_id: the token that ends every answer.
        settings: steps, batch size and learning rate.
        chunk: tokens whose logits exist at a time; None for the whole batch's.
    """

    def __init__(
        self,
        *,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        end_id: int,
        settings: SftSettings,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.policy, self.settings, self._chunk = policy, settings, chunk
        self._tokenizer, self._end_id = tokenizer, end_id

    def training_step(self, prompts: list[Prompt], batch_index: int) -> Float[Tensor, ""]:
        """Mean negative log-probability of the batch's answer tokens, in nats; a rank's share of it.

        Raises:
            NonFiniteStop: if it is not finite.
        """
        loss = -mean_target_logprob(self.policy, self._tokenizer, prompts, self._end_id, chunk=self._chunk)
        whole = parallel.sums([loss.item()])[0]
        if not math.isfinite(whole):
            raise NonFiniteStop(f"{self._here}: alarm non_finite: the loss is {whole}")
        self.log("loss/sft", whole, prog_bar=True, batch_size=1)
        return loss

    def on_after_backward(self) -> None:
        """Ranks have different answers; their gradients add up to the batch's."""
        parallel.add_gradients(list(self.policy.parameters()))

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """As Lightning clips, which would let what is not finite through to the weights.

        Raises:
            NonFiniteStop: if the gradient is not finite, before the weights change.
        """
        try:
            clip_gradients(self.policy, gradient_clip_val, [])
        except NonFiniteStop as stop:
            raise NonFiniteStop(f"{self._here}: {stop}") from None

    @property
    def _here(self) -> str:
        return f"warm-up, step {self.global_step + 1}"

    def configure_optimizers(self):
        """AdamW, warmed up linearly and then decayed by a cosine to 5 % of the peak."""
        settings = self.settings
        trainable = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trainable, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: cosine_factor(step, settings.warmup_steps, settings.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def mean_target_logprob(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    end_id: int,
    *,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """This rank's share of the mean log-probability of the batch's target tokens, `end_id` after each included."""
    answers = [[*tokenizer(prompt.problem.target, add_special_tokens=False)["input_ids"], end_id] for prompt in prompts]
    device = policy.device
    input_ids, attention_mask, mask = collate(
        prompts, answers, pad_id=padding_id(tokenizer, [policy.config.image_token_id]), device=device
    )
    pixels = [{name: tensor.to(device) for name, tensor in prompt.pixels.items()} for prompt in prompts]
    batch = Experience(
        input_ids,
        attention_mask,
        mask,
        pixels,
        sampler_logprobs=torch.zeros(mask.shape, device=device),
        pictures_somewhere=any(parallel.gather(any(pixels))),
    )
    logprobs, _ = ForwardPass(temperature=1.0, banned_ids=(), chunk=chunk).logprobs(policy, batch)
    return logprobs.sum() / parallel.sums([mask.sum().item()])[0]


def cosine_factor(step: int, warmup_steps: int, steps: int) -> float:
    """The learning rate's factor: up linearly to 1, then down along half a cosine, to 0.05 after the last step."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


class SelectBest(Callback):
    """Scores the model on the selection split now and then; training ends with the best weights seen.

    Accuracy swings between neighbouring evaluations, so what is reported of a chosen checkpoint must come from
    another split than the one that chose it.

    Args:
        prompts: of the selection split.
        sampler: started; it must share the live weights.
        sampling: how the responses are drawn.
        reward: tells right from wrong.
        every: steps between evaluations; the last step is always one.
    """

    def __init__(
        self, prompts: Sequence[Prompt], sampler: Sampler, sampling: Sampling, reward: WeightedReward, *, every: int
    ) -> None:
        self._prompts, self._sampler, self._sampling, self._reward = prompts, sampler, sampling, reward
        self._every = every
        self.history: list[tuple[int, float]] = []
        self._best: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer, pl_module: SupervisedModule, outputs, batch, batch_idx) -> None:
        """Evaluate when it is time, and keep a copy of the weights if they are the best so far."""
        step = batch_idx + 1
        if step % self._every and step != pl_module.settings.steps:
            return
        accuracy = score_together(self._sampler, self._prompts, self._reward, self._sampling, seed="selection").accuracy
        pl_module.log("selection", accuracy, prog_bar=True, logger=False, batch_size=1)
        log_once(trainer, {"eval/selection_accuracy": accuracy})
        if not self.history or accuracy > max(past for _, past in self.history):
            self._best = {name: tensor.detach().clone() for name, tensor in state_tensors(pl_module.policy)}
        self.history.append((step, accuracy))

    def on_train_end(self, trainer, pl_module: SupervisedModule) -> None:
        """Go back to the best weights."""
        with torch.no_grad():
            for name, tensor in state_tensors(pl_module.policy):
                tensor.copy_(self._best[name])


class HeldOutScore(Callback):
    """Scores the model as training finds it and as it leaves it, on the device of the training, each rank a share.

    Must come after `SelectBest`, which goes back to the best weights.

    Args:
        prompts: of the test split, which chooses nothing; without any nothing is scored.
        sampler: started; it must share the live weights.
        sampling: how the responses are drawn.
        reward: tells right from wrong.
        seed: of the responses.
    """

    def __init__(
        self, prompts: Sequence[Prompt], sampler: Sampler, sampling: Sampling, reward: WeightedReward, *, seed: str
    ) -> None:
        self._prompts, self._sampler, self._sampling, self._reward = prompts, sampler, sampling, reward
        self._seed = seed
        self.before: Score | None = None
        self.after: Score | None = None

    def on_train_start(self, trainer, pl_module: SupervisedModule) -> None:
        """The model as training found it."""
        self.before = self._score()

    def on_train_end(self, trainer, pl_module: SupervisedModule) -> None:
        """The model as training leaves it."""
        self.after = self._score()

    def _score(self) -> Score | None:
        if not self._prompts:
            return None
        return score_together(self._sampler, self._prompts, self._reward, self._sampling, seed=self._seed)


class TargetLoader(PromptLoader):
    """A prompt loader that insists on worked answers to learn from."""

    def __iter__(self) -> Iterator[list[Prompt]]:
        for batch in super().__iter__():
            check_targets([prompt.problem for prompt in batch])
            yield batch
