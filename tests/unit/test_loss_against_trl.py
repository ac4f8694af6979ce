"""Our objectives against TRL's, on the same tensors: loss and gradient.

Ours is built from the YAML of the algorithm, TRL's from the options that mean the same. Where a definition differs, the
test says how and converts.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from hydra.utils import instantiate
from loss_batches import experience, random_batch
from omegaconf import OmegaConf

ALGORITHMS = Path(__file__).parents[2] / "conf" / "algorithm"


def trainer_class():
    # TRL sets variables for vLLM, which the command-line tests would inherit.
    with patch.dict(os.environ):
        return pytest.importorskip("trl.trainer.grpo_trainer", exc_type=ImportError).GRPOTrainer


def objective(name: str, **options):
    """An algorithm's YAML, built; `options` replace its keys."""
    node = OmegaConf.load(ALGORITHMS / f"{name}.yaml")
    return replace(instantiate(node), **options)


def trl_loss(batch, *, loss_type, low=0.2, high=None, level="token", beta=0.0, advantages=None):
    """(loss, gradient by the log-probs) of `GRPOTrainer._compute_loss`, without the trainer that it is a method of.

    The trainer's forward pass is replaced by `batch`'s log-probs; one process, no gradient accumulation.
    """
    logprobs = batch.logprobs.clone().requires_grad_()
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda value: value, reduce=lambda value, reduction: value),
        args=SimpleNamespace(delta=None, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, steps_per_generation=1),
        loss_type=loss_type,
        importance_sampling_level=level,
        epsilon_low=low,
        epsilon_high=low if high is None else high,
        beta=beta,
        max_completion_length=batch.mask.shape[1],
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    trainer.args.use_bias_correction_kl = False
    mask = batch.mask.long()
    inputs = {
        "prompt_ids": mask[:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": batch.advantages[:, 0] if advantages is None else advantages,
        "old_per_token_logps": batch.old,
        "ref_per_token_logps": batch.reference,
        "num_items_in_batch": mask.sum(),
    }
    loss = trainer_class()._compute_loss(trainer, None, inputs)
    loss.backward()
    return loss.detach(), logprobs.grad


def our_loss(batch, built):
    """(loss, gradient by the log-probs) of an objective on the same batch."""
    logprobs = batch.logprobs.clone().requires_grad_()
    loss, _ = built(logprobs, batch.advantages, experience(batch), batch.totals)
    loss.backward()
    return loss.detach(), logprobs.grad


def assert_agree(ours, trls, tolerance=1e-12):
    assert trls[1].abs().max() > 1e-3  # a gradient of zeros would agree with anything
    torch.testing.assert_close(ours, trls, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kl_coefficient", [0.0, 0.04])
@pytest.mark.parametrize(
    ("name", "trl"),
    [
        ("grpo_paper", {"loss_type": "grpo"}),
        ("dr_grpo", {"loss_type": "dr_grpo"}),
        ("dapo", {"loss_type": "dapo", "high": 0.28}),
        ("grpo", {"loss_type": "dapo", "high": 0.28}),
        ("gspo", {"loss_type": "grpo", "level": "sequence", "low": 3e-4, "high": 4e-4}),
    ],
)
def test_clipped_objectives(name, trl, kl_coefficient):
    batch = random_batch()
    assert_agree(
        our_loss(batch, objective(name, kl_coefficient=kl_coefficient)), trl_loss(batch, beta=kl_coefficient, **trl)
    )


def test_sapo():
    """TRL keeps the temperatures in float32, which leaves 1.05 off by 5e-8."""
    batch = random_batch()
    assert_agree(our_loss(batch, objective("sapo")), trl_loss(batch, loss_type="sapo"), tolerance=1e-6)


@pytest.mark.parametrize("highest", [5.0, 1.2])
def test_cispo(highest):
    """TRL's `epsilon_high` is the largest weight itself, ours how far it may exceed 1."""
    batch = random_batch()
    built = objective("cispo")
    built = replace(built, loss=replace(built.loss, clip_high=highest - 1))
    assert_agree(our_loss(batch, built), trl_loss(batch, loss_type="cispo", high=highest))


def test_gspo_token_with_equal_advantages():
    """TRL has no GSPO-token any more; with equal advantages it is GSPO in value, clip and gradient (the paper, 4.3)."""
    batch = random_batch()
    assert_agree(
        our_loss(batch, objective("gspo_token")),
        trl_loss(batch, loss_type="grpo", level="sequence", low=3e-4, high=4e-4),
    )


@pytest.mark.parametrize(
    ("name", "trl"),
    [
        ("grpo", {"loss_type": "dapo", "high": 0.28}),
        ("sapo", {"loss_type": "sapo"}),
        ("cispo", {"loss_type": "cispo", "high": 5.0}),
    ],
)
def test_advantages_of_each_token(name, trl):
    batch = random_batch().with_token_advantages()
    assert_agree(our_loss(batch, objective(name)), trl_loss(batch, advantages=batch.advantages, **trl), tolerance=1e-6)


@pytest.mark.parametrize(
    ("name", "trl"), [("grpo_paper", {"loss_type": "grpo", "beta": 0.04}), ("dr_grpo", {"loss_type": "dr_grpo"})]
)
def test_responses_without_a_trained_token_count_for_trl_alone(name, trl):
    """TRL divides by all rows, we by those with a trained token: here 4 against 3."""
    batch = random_batch(lengths=(9, 0, 4, 2))
    loss, gradient = trl_loss(batch, **trl)
    assert_agree(our_loss(batch, objective(name)), (loss * 4 / 3, gradient * 4 / 3))
