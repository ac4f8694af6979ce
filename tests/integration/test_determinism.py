"""What the bits of a prompt's responses, scores and losses depend on; and two processes against one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from atrl.data.loader import PromptLoader
from atrl.replay.step_file import read_step
from tests.integration.conftest import REPOSITORY, compose_config
from tests.unit.ranks import run_ranks

BASE = ("rollout=transformers", "trainer.evaluate_samples=0", "optimizer.learning_rate=1e-3", "trainer.threads=1")
DETERMINISTIC = (*BASE, "trainer.deterministic=true")
SCHEMES = sorted(path.stem for path in (REPOSITORY / "conf" / "credit").glob("*.yaml"))

Group = dict[str, list]


def groups_of(folder: Path, step: int) -> dict[str, Group]:
    """By prompt, all that is recorded of its responses."""
    recorded, _ = read_step(folder, step)
    tensors, lengths = recorded.tensors, recorded.tensors["lengths"].tolist()
    found, row, token = {}, 0, 0
    for key, size in recorded.prompts:
        tokens = sum(lengths[row : row + size])
        per_row = ("lengths", "finished", "rewards", "advantages")
        per_token = ("token_ids", "sampler_logprobs", "weights", "logprobs", "losses")
        found[key] = {name: tensors[name][row : row + size].tolist() for name in per_row}
        found[key] |= {name: tensors[name][token : token + tokens].tolist() for name in per_token}
        row, token = row + size, token + tokens
    return found


def weights_of(run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.trained.module.policy.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


KINDS = {
    "atrl": (),
    "papo": ("credit=papo",),
    "vppo": ("credit=vppo",),
    "chunks": ("optimizer.logit_chunk_tokens=50", "credit=papo"),
    "hidden_cosine": ("credit=hidden_cosine",),
    "query_key_cosine": ("credit=query_key_cosine",),
    "updates": ("algorithm.updates_per_batch=2", "algorithm.kl_coefficient=0.05", "rollout.top_p=0.9"),
    "sequence": ("algorithm=gspo_token", "algorithm/correction=sequence_truncate", "credit.workers=1"),
}


QUICK = ("atrl", "chunks", "updates")
"""What `make test` looks at; `make test-all` takes all."""


@pytest.mark.parametrize(
    "options",
    [pytest.param(KINDS[name], id=name, marks=() if name in QUICK else pytest.mark.slow) for name in KINDS],
)
def test_a_group_has_the_same_bits_in_any_batch(train, monkeypatch, options: tuple[str, ...]) -> None:
    """Alone, among others, in another order, in other micro-batches, in other batches of the sampler."""
    options = (*DETERMINISTIC, *options)
    base = train(*options, name="base")
    steps = [groups_of(base.folder, step) for step in (1, 2)]
    lengths = [max(group["lengths"]) for group in steps[0].values()]
    assert len(set(lengths)) > 1  # or padding for itself and for the batch would be the same

    cut = train(*options, "optimizer.micro_batch_size=3", "rollout.sampler.max_batch_sequences=2", name="cut")
    assert [groups_of(cut.folder, step) for step in (1, 2)] == steps
    assert same(weights_of(cut), weights_of(base))

    alone = train(*options, "rollout.prompts_per_step=1", "trainer.max_steps=1", name="alone")
    ((key, group),) = groups_of(alone.folder, 1).items()
    # A scheme that compares rollouts weighs them by the others of the batch: that is its rule, and no rounding.
    left_out = ("weights", "losses") if base.trained.credit.scheme.scope == "batch" else ()
    assert left_out == (() if "credit=vppo" not in options else ("weights", "losses"))
    for name, values in group.items():
        assert name in left_out or values == steps[0][key][name], name

    take = PromptLoader.take
    monkeypatch.setattr(PromptLoader, "take", lambda loader, count: take(loader, count)[::-1])
    turned = train(*options, name="turned")
    other = [groups_of(turned.folder, step) for step in (1, 2)]
    assert list(other[0]) == list(steps[0])[::-1]
    assert other == steps  # also after an update: gradients are added up in float64
    assert same(weights_of(turned), weights_of(base))


def two_steps(folder: Path, *options: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The policy before and after two steps, in this process or as one of its ranks."""
    from atrl import pipeline, stages

    folder.mkdir(exist_ok=True)
    parts = pipeline.instantiate_parts(compose_config(folder, *options), folder)
    pipeline.prepare_process(parts)
    data = pipeline.load_data(parts)
    loaded = parts.model.load(folder / "initial_model")
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    trained = stages.reinforce(parts, data, loaded)
    parts.reward.close()
    return before, trained.module.policy.state_dict()


def as_one_of_two(folder: Path, runs: dict[str, tuple[str, ...]]) -> dict[str, dict[str, torch.Tensor]]:
    """By name of the run, the policy after two steps; a function of its own, so that the ranks start once."""
    from atrl.sharding import whole

    rank = torch.distributed.get_rank()
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}  # so Lightning starts no processes
    found = {}
    for name, options in runs.items():
        after = two_steps(folder / name, *options, "trainer.devices=2")[1]
        after = {key: whole(value).clone().numpy() for key, value in after.items()}
        found[name] = after if rank == 0 else {}
    return found


def relative_change(before, one, other) -> float:
    """‖Δ − Δ₁‖ / ‖Δ₁‖ of the changes by one process and by two."""
    names = list(before)
    first = torch.cat([(one[name].double() - before[name].double()).flatten() for name in names])
    second = torch.cat([(torch.as_tensor(other[name]).double() - before[name].double()).flatten() for name in names])
    return float((second - first).norm() / first.norm())


def test_two_processes_change_the_policy_as_one_does(tmp_path: Path) -> None:
    """To the bit if deterministic, by every scheme; otherwise but for rounding, which AdamW makes larger."""
    runs = {f"{scheme}_fast": (*BASE, f"credit={scheme}") for scheme in ("atrl", "vppo", "papo")}
    runs |= {f"{scheme}_exact": (*DETERMINISTIC, f"credit={scheme}") for scheme in SCHEMES}
    runs["product_exact"] = (*DETERMINISTIC, "credit=entropy_atrl", "+credit.schemes.1.within=batch")
    both = run_ranks(as_one_of_two, tmp_path, runs, seconds=900)[0]
    off = {}
    for name, options in runs.items():
        before, after = two_steps(tmp_path / f"{name}_alone", *options)
        off[name] = relative_change(before, after, both[name])
        for step in (1, 2):
            if name.endswith("_exact"):
                assert groups_of(tmp_path / name, step) == groups_of(tmp_path / f"{name}_alone", step), name
    print("\n" + "\n".join(f"{name:30} {value:.1e}" for name, value in off.items()))
    assert {name: value for name, value in off.items() if name.endswith("_exact") and value} == {}
    assert {name: value for name, value in off.items() if value > 1e-3} == {}


def test_two_processes_change_adapters_as_one_does(tmp_path: Path) -> None:
    """To the bit if deterministic; but for rounding where FSDP divides the policy, which can't be."""
    adapters = ("model/lora=language", "model.lora.rank=4")
    alone = {"ddp": (*DETERMINISTIC, *adapters), "fsdp": (*BASE, *adapters)}
    runs = {name: (*options, f"trainer.strategy={name}") for name, options in alone.items()}
    both = run_ranks(as_one_of_two, tmp_path, runs, seconds=600)[0]
    off = {}
    for name, options in alone.items():
        before, after = two_steps(tmp_path / f"{name}_alone", *options)
        moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
        assert moved == {key for key in before if ".lora_" in key}
        off[name] = relative_change(before, after, both[name])
    print(f"\nadapters, ddp and deterministic: {off['ddp']:.1e}, fsdp: {off['fsdp']:.1e}")
    assert off["ddp"] == 0 and off["fsdp"] < 1e-3, off
    for step in (1, 2):
        assert groups_of(tmp_path / "ddp", step) == groups_of(tmp_path / "ddp_alone", step)


def divided_by_tokens(folder: Path, options: tuple[str, ...]) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Pieces of each step, and the policy after two steps, of a policy that two ranks divide."""
    from atrl.sharding import whole
    from atrl.splitting import TokenBudgetSplit

    rank = torch.distributed.get_rank()
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    pieces, slices = [], TokenBudgetSplit.slices

    def counting(split, experience):
        found = slices(split, experience)
        pieces.append(len(found))
        return found

    TokenBudgetSplit.slices = counting
    after = two_steps(folder, *options, "trainer.devices=2", "trainer.strategy=fsdp")[1]
    return pieces, {name: whole(value).clone().numpy() for name, value in after.items()}


def test_ranks_that_divide_a_policy_take_equally_many_micro_batches_of_a_budget(tmp_path: Path) -> None:
    """Also with a frozen tower, whose pictures the ranks know at different times; the same as one process."""
    options = (*BASE, "optimizer.micro_batch_tokens=300", "optimizer.logit_chunk_tokens=50", "model.freeze_vision=true")
    (first, both), (second, _) = run_ranks(divided_by_tokens, tmp_path / "both", options, seconds=600)
    assert first == second and min(first) > 1
    before, after = two_steps(tmp_path / "alone", *options)
    assert relative_change(before, after, both) < 1e-3


def drawn_again(folder: Path, runs: dict[str, tuple[str, ...]]) -> dict[str, tuple[list[int], dict]]:
    """By name of the run: how many prompts each call of this rank's sampler had, and the policy after two steps."""
    from atrl.rollout.transformers import TransformersSampler

    sizes, generate = [], TransformersSampler.generate

    def counting(sampler, prompts, sampling, *, seed):
        sizes.append(len(prompts))
        return generate(sampler, prompts, sampling, seed=seed)

    TransformersSampler.generate = counting
    found = {}
    for name, options in runs.items():
        sizes.clear()
        after = as_one_of_two(folder, {name: options})[name]
        found[name] = (list(sizes), after)
    return found


def test_two_processes_draw_again_what_one_does(tmp_path: Path) -> None:
    """The same prompts in the same order, left out ones included, also where a rank has no share of a round.

    To the bit if deterministic; but for rounding where FSDP divides the policy and gathers it around each round.
    """
    dapo = ("algorithm=dapo", "algorithm.overlong=null", "algorithm.dynamic_sampling.max_draws=3")
    dapo += ("rollout.group_size=2",)
    alone = {"ddp": (*DETERMINISTIC, *dapo), "fsdp": (*BASE, *dapo, "rollout.top_k=12")}
    runs = {name: (*options, f"trainer.strategy={name}") for name, options in alone.items()}
    first, second = run_ranks(drawn_again, tmp_path, runs, seconds=600)
    for name, options in alone.items():
        before, after = two_steps(tmp_path / f"{name}_alone", *options)
        assert len(first[name][0]) == len(second[name][0]) > 2 and 0 in first[name][0], name
        for step in (1, 2):
            both, one = (read_step(tmp_path / folder, step)[0] for folder in (name, f"{name}_alone"))
            assert (both.prompts, both.trained) == (one.prompts, one.trained) and one.trained == 4 < len(one.prompts)
            assert torch.equal(both.tensors["token_ids"], one.tensors["token_ids"])
        off = relative_change(before, after, first[name][1])
        print(f"\n{name}: {first[name][0]} and {second[name][0]} prompts a round, {off:.1e}")
        assert off == 0 if name == "ddp" else off < 1e-3
    for step in (1, 2):
        assert groups_of(tmp_path / "ddp", step) == groups_of(tmp_path / "ddp_alone", step)
