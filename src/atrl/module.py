"""The training step, from prompt to gradient, in nine stages that read top to bottom."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from atrl import parallel
from atrl.alarms import clip_gradients
from atrl.credit.bound import Begun, BoundCredit, join_credit, spread_advantages
from atrl.experience import build_experience
from atrl.forward import ForwardPass, attention_maps
from atrl.gradients import GradientSum
from atrl.loss.aggregation import BatchTotals
from atrl.loss.objective import Objective
from atrl.models.lora import without_adapters
from atrl.models.policy import evaluating
from atrl.models.vision import frozen_vision_once
from atrl.prompt_module import PromptModule
from atrl.rewards.weighted import WeightedReward
from atrl.rollout.bound import RolloutSource
from atrl.rollout.dealing import PromptStream
from atrl.rollout.dynamic import DynamicBatch, sampling_metrics
from atrl.schedule import optimizer_and_schedule, schedule_of
from atrl.sections import OptimizerSettings
from atrl.splitting import Split, join_rows
from atrl.step import MicroBatch, Outcome, Scored, StepRecord, loss_means, shown_rollouts
from atrl.timing import PhaseTimer
from atrl.types import CreditOutput, Evidence, Experience, Prompt, Reward, RolloutGroup
from atrl.weight_sync import named_parameters

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class PolicyModule(PromptModule):
    """Policy, reference model and the step that trains the one against the other.

    Callbacks bind what a step calls: `rollouts` (always) and `credit` (unbound means that every token gets the
    same). Optimisation is manual: one batch of rollouts, many micro-batches, one or more optimizer steps.

    Args:
        policy: the model that is trained, with gradients.
        reference: the model that the KL term compares with, frozen, or the policy, which then is compared with itself
            without its adapters; None without a KL term.
        objective: advantage, loss, aggregation and KL term.
        reward: rollouts → rewards.
        optimizer_settings: AdamW, warm-up, gradient clipping and the micro-batch size.
        temperature: rollouts are sampled at; log-probs are taken at the same.
        banned_ids: tokens that are never sampled, and so have probability 0.
        pad_id: fills the batch; any id of the vocabulary.
        max_response_tokens: the limit on a response's length.
        max_steps: training steps of the run, over which the learning rate falls.
        seed: of the run.
        split: how a batch is cut into micro-batches.
        share_prompts: a prompt is run once for all of its responses.
        gradients: how theirs are added up.
        stream: of prompts, from which dynamic sampling takes further ones.
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
        split: Split,
        share_prompts: bool,
        gradients: GradientSum,
        stream: PromptStream | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy
        # Hidden from the module tree: a frozen model belongs neither in checkpoints nor in the optimizer.
        object.__setattr__(self, "reference", reference)
        self.objective, self.reward, self.optimizer_settings = objective, reward, optimizer_settings
        self.pad_id = pad_id
        self.max_response_tokens, self.max_steps, self.seed = max_response_tokens, max_steps, seed
        self.split, self.gradients, self.stream = split, gradients, stream
        self.rollouts: RolloutSource | None = None
        self.credit: BoundCredit | None = None
        self.timer = PhaseTimer()
        self.forward_pass = ForwardPass(
            temperature=temperature,
            banned_ids=banned_ids,
            chunk=optimizer_settings.logit_chunk_tokens,
            share_prompts=share_prompts,
            timer=self.timer,
        )
        self.last_step: StepRecord | None = None
        self.steps_done = 0

    def on_fit_start(self) -> None:
        """Lightning moves only what is in the module tree, which the reference is kept out of."""
        if self.reference is not None:
            cast("nn.Module", self.reference).to(self.device)  # transformers wraps `to` and loses its signature

    def training_step(self, prompts: list[Prompt], batch_index: int) -> None:
        """One batch of prompts, nine stages, one or more optimizer steps."""
        assert self.rollouts is not None, "no sampler is bound: add the rollout callback to the trainer"
        seed = f"{self.seed}/{self.steps_done}"
        phase = self.timer.phase

        drawn = self._draw(prompts, seed)  # 1: prompts → rollout groups, 2: rollouts → rewards
        groups, rewards = drawn.groups, drawn.rewards
        self.rollouts.rest()  # its memory is the update's until stage 9

        advantages = self._advantages(rewards, seed)  # 3: rewards → one advantage a rollout

        with frozen_vision_once(self.policy, self.reference):
            with phase("score"):  # 4: rollouts → tensors, with what policy and reference say of them before the update
                experience = self._tensors(groups, seed)
                order = self.split.order(experience)
                shown = order.argsort()[shown_rollouts(experience)].tolist()
                scored = self._score(experience.rows(order), shown)
                experience = scored.experience

            with phase("credit"):  # 5: attention → weight a token; or in stage 7, if its forward pass is the first
                credit = self.credit.assign(experience, scored.evidence, scored.begun) if scored.evidence else None

            # 6: tensors → micro-batches, and the totals that make their losses add up to the global batch's
            batches = self.split.slices(experience)
            totals = self._totals(experience)

            with phase("update"):
                for update in range(self.objective.updates_per_batch):
                    in_order = advantages.flatten()[order]
                    outcomes = list(self._learn(experience, in_order, credit, batches, totals, shown))  # 7
                    taken = self._optimizer_step(outcomes)  # 8: clip, optimizer step, schedule
                    if update == 0:
                        first = outcomes

        with phase("sync"):  # 9: new weights → sampler
            self.steps_done += 1
            self.rollouts.update_weights(named_parameters(self.policy), version=self.steps_done)

        if credit is None:
            credit = join_credit([outcome.credit for outcome in first], experience.response_length)
        sampling = {} if drawn.choice is None else sampling_metrics(drawn.choice)
        self.last_step = StepRecord.of(
            step=self.steps_done,
            drawn=drawn,
            advantages=advantages,
            scored=scored,
            outcomes=first,
            credit=credit,
            order=order,
            metrics=loss_means(outcomes, totals) | taken | sampling,
        )

    def _draw(self, prompts: Sequence[Prompt], seed: str) -> DynamicBatch:
        """Stages 1 and 2, with dynamic sampling again for as many new prompts as taught nothing.

        The overlong penalty comes last: lengths alone don't make a group teach something.
        """

        def draw(prompts: Sequence[Prompt], attempt: int) -> tuple[list[RolloutGroup], list[list[Reward]]]:
            with self.timer.phase("rollout"):
                groups = self.rollouts.generate(prompts, seed=f"{seed}/{attempt}" if attempt else seed)
            with self.timer.phase("reward"):
                return groups, self.reward.score(groups)

        if self.objective.dynamic_sampling is None:
            drawn = DynamicBatch(*draw(prompts, 0), discarded=[], choice=None)
        else:
            drawn = self.objective.dynamic_sampling.fill(prompts, draw=draw, stream=self.stream)
        overlong = self.objective.overlong
        if overlong is None:
            return drawn
        return drawn.rewarded(lambda groups, rewards: overlong.apply(groups, rewards, self.max_response_tokens))

    def _advantages(self, rewards: list[list[Reward]], seed: str) -> Float[Tensor, "group sample"]:
        """Stage 3, over the global batch; this rank's rows of it."""
        totals = torch.tensor([[reward.total for reward in group] for group in rewards], device=self.device)
        before = sum(parallel.gather(len(totals))[: parallel.rank()])
        advantages = self.objective.advantage(parallel.gather_rows(totals), seed=seed)
        return advantages[before : before + len(totals)]

    def _tensors(self, groups: list[RolloutGroup], seed: str) -> Experience:
        """Stage 4, first half: one padded batch, with masked pictures if credit asks for them."""
        experience = build_experience(groups, pad_id=self.pad_id, device=self.device, seed=seed)
        experience = replace(experience, pictures_somewhere=any(parallel.gather(any(experience.pixels))))
        return experience if self.credit is None else self.credit.prepare(experience, groups)

    def _score(self, experience: Experience, shown: list[int]) -> Scored:
        """Stage 4, second half: no-grad passes, if anything asks for them, and what credit begins on their evidence.

        Policy: for old log-probs (several updates a batch), and for credit that needs those or the whole batch. Other
        credit reads its evidence from the training pass, which costs no pass of its own. Reference: for the KL term.
        What was read of layers goes with its piece: of a whole batch it would be in memory beside the update.
        """
        needs_old = self.objective.updates_per_batch > 1
        needs_policy = needs_old or (self.credit is not None and self.credit.scheme.scope == "batch")
        logprobs: list[Tensor] = []
        evidence: list[Evidence] = []
        begun: list[Begun] = []
        reference: list[Tensor] = []
        attention: dict[int, Tensor] = {}
        with torch.no_grad():
            for rows in self.split.slices(experience):
                batch = self.split.piece(experience, rows)
                if needs_policy:
                    with self.timer.phase("score" if needs_old else "credit"):  # whom the pass is for
                        forward = self.forward_pass(self.policy, batch, self.credit, read=True)
                    logprobs.append(forward.logprobs)
                if needs_policy and self.credit is not None:
                    with self.timer.phase("credit"):
                        begun.append(self.credit.begin(batch, forward.evidence))
                    attention |= attention_maps(forward.evidence, rows.start, shown)
                    evidence.append(replace(forward.evidence, read={}))
                if self.reference is not None:
                    with without_adapters(self.reference), evaluating(self.reference):
                        reference.append(self.forward_pass.logprobs(self.reference, batch)[0])
        width = experience.response_length
        scored = replace(
            experience,
            old_logprobs=join_rows(logprobs, width) if needs_old else None,
            reference_logprobs=join_rows(reference, width) if reference else None,
        )
        return Scored(scored, evidence, begun, attention)

    def _learn(
        self,
        experience: Experience,
        advantages: Float[Tensor, "rollout"],
        credit: CreditOutput | None,
        batches: Sequence[slice],
        totals: BatchTotals,
        shown: list[int],
    ) -> Iterator[Outcome]:
        """Stage 7: micro-batch → log-probs → (credit →) loss → backward.

        A scheme that works elsewhere gets the time of the next forward pass, whose activations then exist twice.
        """
        reads = self.credit is not None and credit is None
        ahead = 1 if reads and self.credit.scheme.works_elsewhere else 0
        waiting: deque[MicroBatch] = deque()
        for rows in batches:
            batch = self.split.piece(experience, rows)
            forward = self.forward_pass(self.policy, batch, self.credit, read=reads)
            if reads:
                with self.timer.phase("credit"):
                    begun = self.credit.weigh(batch, forward.evidence)
            else:
                begun = _known(None if credit is None else credit.rows(rows, batch.response_length))
            waiting.append(MicroBatch(rows, batch, forward, begun, shown))
            if len(waiting) > ahead:
                yield self._backward(waiting.popleft(), advantages, totals)
        while waiting:
            yield self._backward(waiting.popleft(), advantages, totals)

    def _backward(self, part: MicroBatch, advantages: Float[Tensor, "rollout"], totals: BatchTotals) -> Outcome:
        """The second half of stage 7."""
        with self.timer.phase("credit"):
            credit = part.credit()
        batch, forward = part.batch, part.forward
        credit_on = self.objective.credit_on
        per_token = spread_advantages(advantages[part.rows], batch.response_mask, credit, credit_on=credit_on)
        losses, sums = self.objective.per_token(forward.logprobs, per_token, batch)
        loss = self.objective.aggregation(losses, batch.response_mask, totals)
        sums |= {"policy": loss.detach() * totals.tokens, "entropy": forward.entropy.sum()}
        if self.credit is not None and self.credit.scheme.has_auxiliary_loss:
            auxiliary = self.credit.scheme.auxiliary_loss(forward.logprobs, forward.evidence)
            auxiliary = self.objective.aggregation(auxiliary, batch.response_mask, totals)
            sums["auxiliary"] = auxiliary.detach() * totals.tokens
            loss = loss + auxiliary
        self.manual_backward(loss)
        self.gradients.add(list(self.policy.parameters()))
        shown = attention_maps(forward.evidence, part.rows.start, part.shown)
        return Outcome(sums, forward.logprobs.detach(), forward.entropy, losses.detach(), credit, shown)

    def _totals(self, experience: Experience) -> BatchTotals:
        mask = experience.response_mask
        tokens, sequences = parallel.sums([mask.sum().item(), mask.any(dim=1).sum().item()])
        return BatchTotals(tokens=int(tokens), sequences=int(sequences), max_response_tokens=self.max_response_tokens)

    def _optimizer_step(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """Stage 8; the gradient's norm before it was clipped, and the learning rate that was used.

        Raises:
            NonFiniteStop: if a loss or gradient is not finite, before the weights change.
        """
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer), "a policy has one optimizer"
        self.gradients.finish(list(self.policy.parameters()))
        losses = [outcome.sums["policy"] for outcome in outcomes]
        weights = [outcome.credit.weights for outcome in outcomes if outcome.credit is not None]
        norm = clip_gradients(self.policy, self.optimizer_settings.max_gradient_norm, losses, weights)
        taken = {"loss/gradient_norm": norm, "loss/learning_rate": optimizer.param_groups[0]["lr"]}
        optimizer.step()
        optimizer.zero_grad()
        schedule_of(self).step()
        return taken

    def resume_at(self, step: int, seconds: dict[str, float]) -> None:
        """Go on after `step` training steps, whose phases took `seconds`."""
        self.steps_done = self.first_step = step
        self.timer.total.update(seconds)

    def configure_optimizers(self):
        """AdamW on the policy's trainable parameters, with the learning rate of `learning_rate_factor`."""
        updates = self.max_steps * self.objective.updates_per_batch
        return optimizer_and_schedule(self.policy.parameters(), self.optimizer_settings, updates)


def _known(credit: CreditOutput | None) -> Callable[[], CreditOutput | None]:
    return lambda: credit
