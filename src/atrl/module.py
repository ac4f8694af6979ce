"""The training step, from prompt to gradient, in nine stages that read top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.config import OptimizerSettings
from atrl.credit.probe import concatenate
from atrl.experience import build_experience, micro_batches
from atrl.logprobs import process_logits, token_entropy, token_logprobs
from atrl.loss.aggregation import BatchTotals
from atrl.loss.objective import Objective
from atrl.models.policy import response_logits
from atrl.prompt_module import PromptModule
from atrl.rewards.weighted import WeightedReward
from atrl.timing import PhaseTimer
from atrl.types import AttentionCapture, CreditOutput, Experience, Prompt, Reward, RolloutGroup
from atrl.weight_sync import named_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from atrl.credit.base import CreditScheme
    from atrl.credit.probe import AttentionProbe


@dataclass(frozen=True, slots=True)
class BoundCredit:
    """A credit scheme and, if it needs attention, the probe that reads it from the policy."""

    scheme: CreditScheme
    probe: AttentionProbe | None


class RolloutSource(Protocol):
    """What the rollout callback binds: rollouts for prompts, from the newest weights that it was given."""

    def generate(self, prompts: Sequence[Prompt], *, seed: str) -> list[RolloutGroup]: ...
    def update_weights(self, parameters, version: int) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class StepRecord:
    """Everything one step produced, for callbacks to log and record; they must not change it."""

    step: int
    groups: list[RolloutGroup]
    rewards: list[list[Reward]]
    advantages: Float[Tensor, "group sample"]
    experience: Experience
    credit: CreditOutput | None
    capture: AttentionCapture | None
    logprobs: Float[Tensor, "rollout response"]
    """Of the policy that sampled, before this step's update; 0 on padding."""
    entropy: Float[Tensor, "rollout response"]
    """Of the same policy, in nats; 0 on padding."""
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatchOutcome:
    """A micro-batch's share of the loss, sums for the metrics, and what the policy says of its tokens."""

    loss: Float[Tensor, ""]
    sums: dict[str, Tensor]
    logprobs: Float[Tensor, "rollout response"]
    entropy: Float[Tensor, "rollout response"]


class PolicyModule(PromptModule):
    """Policy, reference model and the step that trains the one against the other.

    Callbacks bind what a step calls: `rollouts` (always) and `credit` (unbound means that every token gets the
    same). Optimisation is manual: one batch of rollouts, many micro-batches, one or more optimizer steps.

    Args:
        policy: the model that is trained, with gradients.
        reference: the model that the KL term compares with, frozen; None without a KL term.
        objective: advantage, loss, aggregation and KL term.
        reward: rollouts → rewards.
        optimizer_settings: AdamW, warm-up, gradient clipping and the micro-batch size.
        temperature: rollouts are sampled at; log-probs are taken at the same.
        banned_ids: tokens that are never sampled, and so have probability 0.
        pad_id: fills the batch; any id of the vocabulary.
        max_response_tokens: the limit on a response's length.
        max_steps: training steps of the run, over which the learning rate falls.
        seed: of the run.
    """

    def __init__(
        self,
        *,
        policy: PreTrainedModel,
        reference: PreTrainedModel | None,
        objective: Objective,
        reward: WeightedReward,
        optimizer_settings: OptimizerSettings,
        temperature: float,
        banned_ids: tuple[int, ...],
        pad_id: int,
        max_response_tokens: int,
        max_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy
        # Hidden from the module tree: a frozen model belongs neither in checkpoints nor in the optimizer.
        object.__setattr__(self, "reference", reference)
        self.objective, self.reward, self.optimizer_settings = objective, reward, optimizer_settings
        self.temperature, self.banned_ids, self.pad_id = temperature, banned_ids, pad_id
        self.max_response_tokens, self.max_steps, self.seed = max_response_tokens, max_steps, seed
        self.rollouts: RolloutSource | None = None
        self.credit: BoundCredit | None = None
        self.timer = PhaseTimer()
        self.last_step: StepRecord | None = None
        self.steps_done = 0

    def on_fit_start(self) -> None:
        """Lightning moves only what is in the module tree, which the reference is kept out of."""
        if self.reference is not None:
            self.reference.to(self.device)

    def training_step(self, prompts: list[Prompt], batch_index: int) -> None:
        """One batch of prompts, nine stages, one or more optimizer steps."""
        assert self.rollouts is not None, "no sampler is bound: add the rollout callback to the trainer"
        step_seed = f"{self.seed}/{self.steps_done}"
        phase = self.timer.phase

        with phase("rollout"):  # 1: prompts → rollout groups
            groups = self.rollouts.generate(prompts, seed=step_seed)

        with phase("reward"):  # 2: rollouts → rewards
            rewards = self.reward.score(groups)

        # 3: rewards → one advantage a rollout
        totals = torch.tensor([[reward.total for reward in group] for group in rewards], device=self.device)
        advantages = self.objective.advantage(totals, seed=step_seed)

        with phase("score"):  # 4: rollouts → tensors, with what the policy and the reference say of them
            experience = build_experience(groups, pad_id=self.pad_id, device=self.device)
            experience, capture = self._score(experience)

        with phase("credit"):  # 5: attention → weight a token
            credit = None if self.credit is None else self.credit.scheme(experience, capture)
            token_advantages = spread_advantages(advantages.flatten(), experience.response_mask, credit)

        # 6: tensors → micro-batches, and the totals that make their losses add up to the batch's
        batches = list(micro_batches(experience.size, self.optimizer_settings.micro_batch_size))
        batch_totals = self._totals(experience)

        tokens: list[tuple[Tensor, Tensor]] = []
        with phase("update"):
            for update in range(self.objective.updates_per_batch):
                sums = []
                for rows in batches:  # 7: micro-batch → log-probs → loss → backward
                    outcome = self._loss(experience.rows(rows), token_advantages[rows], batch_totals)
                    self.manual_backward(outcome.loss)
                    sums.append(outcome.sums)
                    if update == 0:
                        tokens.append((outcome.logprobs, outcome.entropy))
                gradient_norm = self._optimizer_step()  # 8: clip, optimizer step, schedule

        with phase("sync"):  # 9: new weights → sampler
            self.steps_done += 1
            self.rollouts.update_weights(named_parameters(self.policy), version=self.steps_done)

        metrics = {f"loss/{name}": sum(part[name] for part in sums).item() / batch_totals.tokens for name in sums[0]}
        logprobs, entropy = (torch.cat(part) for part in zip(*tokens, strict=True))
        self.last_step = StepRecord(
            step=self.steps_done,
            groups=groups,
            rewards=rewards,
            advantages=advantages,
            experience=experience,
            credit=credit,
            capture=capture,
            logprobs=logprobs,
            entropy=entropy,
            metrics=metrics | {"loss/gradient_norm": gradient_norm},
        )

    def _score(self, experience: Experience) -> tuple[Experience, AttentionCapture | None]:
        """One no-grad forward, if anything asks for it: old log-probs, attention; and the reference's log-probs."""
        probe = None if self.credit is None else self.credit.probe
        needs_old = self.objective.updates_per_batch > 1
        old, captures, reference = [], [], []
        with torch.no_grad():
            for rows in micro_batches(experience.size, self.optimizer_settings.micro_batch_size):
                batch = experience.rows(rows)
                if needs_old or probe is not None:
                    with nullcontext() if probe is None else probe.capture(batch) as recorder:
                        old.append(self._logprobs(self.policy, batch)[0])
                    if recorder is not None:
                        captures.append(recorder.result())
                if self.reference is not None:
                    reference.append(self._logprobs(self.reference, batch)[0])
        scored = replace(
            experience,
            old_logprobs=torch.cat(old) if needs_old else None,
            reference_logprobs=torch.cat(reference) if reference else None,
        )
        return scored, concatenate(captures) if captures else None

    def _logprobs(
        self, model: PreTrainedModel, batch: Experience
    ) -> tuple[Float[Tensor, "rollout response"], Float[Tensor, "rollout response vocabulary"]]:
        processed = process_logits(
            response_logits(model, batch), temperature=self.temperature, banned_ids=self.banned_ids
        )
        # Padding may repeat a banned id, whose log-prob of -inf would turn a masked loss into NaN.
        token_ids = batch.input_ids[:, batch.prompt_length :]
        logprobs = token_logprobs(processed, token_ids)
        return torch.where(batch.response_mask, logprobs, 0.0), processed

    def _loss(
        self, batch: Experience, advantages: Float[Tensor, "rollout response"], totals: BatchTotals
    ) -> MicroBatchOutcome:
        logprobs, processed = self._logprobs(self.policy, batch)
        loss, sums = self.objective(logprobs, advantages, batch, totals)
        with torch.no_grad():
            entropy = token_entropy(processed) * batch.response_mask
        sums |= {"policy": loss.detach() * totals.tokens, "entropy": entropy.sum()}
        return MicroBatchOutcome(loss, sums, logprobs.detach(), entropy)

    def _totals(self, experience: Experience) -> BatchTotals:
        return BatchTotals(
            tokens=int(experience.response_mask.sum()),
            sequences=int(experience.response_mask.any(dim=1).sum()),
            max_response_tokens=self.max_response_tokens,
        )

    def _optimizer_step(self) -> float:
        optimizer = self.optimizers()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.optimizer_settings.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        self.lr_schedulers().step()
        return float(norm)

    def configure_optimizers(self):
        """AdamW on the policy's trainable parameters, with the learning rate of `learning_rate_factor`."""
        settings = self.optimizer_settings
        trainable = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trainable, lr=settings.learning_rate, betas=tuple(settings.betas), weight_decay=settings.weight_decay
        )
        updates = self.max_steps * self.objective.updates_per_batch
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda update: learning_rate_factor(update, settings, updates)
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def spread_advantages(
    advantages: Float[Tensor, "rollout"], mask: Bool[Tensor, "rollout response"], credit: CreditOutput | None
) -> Float[Tensor, "rollout response"]:
    """``advantage[b,t] = weight[b,t] · scale[b] · advantage[b]``: the one place where credit enters.

    AT-RL: Jiao et al., arXiv 2602.11455. Without credit every token gets its rollout's advantage.
    """
    per_token = advantages[:, None].expand(mask.shape)
    if credit is None:
        return per_token
    if credit.trajectory_scale is not None:
        per_token = per_token * credit.trajectory_scale[:, None]
    return credit.weights * per_token


def learning_rate_factor(update: int, settings: OptimizerSettings, updates: int) -> float:
    """The learning rate over its peak at an update: up linearly to 1, then down linearly to `decay_to` at the last."""
    if update < settings.warmup_steps:
        return (update + 1) / settings.warmup_steps
    progress = min(1.0, (update - settings.warmup_steps) / max(1, updates - 1 - settings.warmup_steps))
    return 1 - (1 - settings.decay_to) * progress
