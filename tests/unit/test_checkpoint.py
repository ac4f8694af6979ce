"""Training states on disk: what comes back, from how many ranks, and what a killed write leaves."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from atrl.checkpoint import load_tensors, model_tensors, newest_checkpoint, read_checkpoint, write_checkpoint
from tests.unit.ranks import run_ranks


class Model(nn.Module):
    """Two matrices, of which the second is there under two names, and one parameter that nothing trains."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, width), nn.Linear(width, 3, bias=False)
        self.tied = nn.Linear(width, 3, bias=False)
        self.tied.weight = self.second.weight
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.tied(self.first(inputs).tanh())


def model_and_optimizer(*, width: int = 5, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Model(width)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    inputs = torch.linspace(-1, 1, 12).reshape(4, 3)
    for _ in range(count):
        model(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def equal_states(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> bool:
    pairs = zip(one.state_dict()["state"].items(), other.state_dict()["state"].items(), strict=True)
    return all(
        index == other_index and entries.keys() == others.keys()
        and all(torch.equal(entries[name], others[name]) for name in entries)
        for (index, entries), (other_index, others) in pairs
    )  # fmt: skip


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Also what follows: the next step of what was read is the next step of what was written."""
    model, optimizer = model_and_optimizer()
    take_steps(model, optimizer)
    folder = write_checkpoint(tmp_path, {"step": 3, "note": 0.1}, model, optimizer)
    assert folder.name == "step_000003" and (tmp_path / "last").resolve() == folder
    expected = random.random(), numpy.random.rand(), torch.rand(1).item()
    checkpoint = read_checkpoint(tmp_path / "last")
    assert checkpoint.step == 3 and checkpoint.state["note"] == 0.1

    other, its_optimizer = model_and_optimizer(seed=1)
    load_tensors(checkpoint, other, its_optimizer)
    assert (random.random(), numpy.random.rand(), torch.rand(1).item()) == expected
    assert other.tied.weight is other.second.weight
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert equal_states(optimizer, its_optimizer)
    assert other.unused not in its_optimizer.state
    take_steps(model, optimizer)
    take_steps(other, its_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_killed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    model, optimizer = model_and_optimizer()
    write_checkpoint(tmp_path, {"step": 1}, model, optimizer)

    def killed(tensors, path, **options):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, {"step": 2}, model, optimizer)
    assert newest_checkpoint(tmp_path).step == read_checkpoint(tmp_path / "last").step == 1
    write_checkpoint(tmp_path, {"step": 2}, model, optimizer)
    assert newest_checkpoint(tmp_path).step == read_checkpoint(tmp_path / "last").step == 2


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no checkpoint: state\.json can't be read"):
        read_checkpoint(tmp_path)
    assert newest_checkpoint(tmp_path) is None
    model, optimizer = model_and_optimizer()
    folder = write_checkpoint(tmp_path, {"step": 1}, model, optimizer)
    wider, its_optimizer = model_and_optimizer(width=6)
    with pytest.raises(ValueError, match=r"has first\.weight of shape \[5, 3\], the model \[6, 3\]: it is of another"):
        load_tensors(read_checkpoint(folder), wider, its_optimizer)
    wider.more = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="another model"):
        load_tensors(read_checkpoint(folder), wider, None)
    (folder / "rank_00000.safetensors").unlink()
    with pytest.raises(ValueError, match=r"incomplete: rank_00000\.safetensors is missing"):
        read_checkpoint(folder)
    (folder / "state.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="has checkpoint format 99, this version reads 1"):
        read_checkpoint(folder)


def divided():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, _ = model_and_optimizer()
    fully_shard(model, mesh=init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def write_divided(root: Path) -> None:
    """Five rows over two ranks: three and two."""
    model, optimizer = divided()
    model.set_gradient_divide_factor(1.0)
    model.set_force_sum_reduction_for_comms(True)
    inputs = torch.linspace(-1, 1, 12).reshape(4, 3).chunk(2)[torch.distributed.get_rank()]
    for _ in range(3):
        model(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    write_checkpoint(root, {"step": 3}, model, optimizer)


def read_divided(folder: Path) -> dict:
    model, optimizer = divided()
    load_tensors(read_checkpoint(folder), model, optimizer)
    states = [optimizer.state[parameter] for parameter in model.parameters() if parameter in optimizer.state]
    return {
        "model": [parameter.full_tensor().detach() for parameter in model.parameters()],
        "average": [state["exp_avg"].full_tensor() for state in states],
        "steps": [state["step"].item() for state in states],
    }


@pytest.mark.parametrize("written_by", ["one process", "two ranks"])
def test_any_number_of_ranks_reads_what_any_number_wrote(tmp_path: Path, written_by: str) -> None:
    """Whole by one process, divided by two ranks; read by both."""
    whole, its_optimizer = model_and_optimizer()
    take_steps(whole, its_optimizer)
    if written_by == "two ranks":
        run_ranks(write_divided, tmp_path)
    else:
        write_checkpoint(tmp_path, {"step": 3}, whole, its_optimizer)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint.state["ranks"] == (2 if written_by == "two ranks" else 1)
    averages = [its_optimizer.state[p]["exp_avg"] for p in whole.parameters() if p in its_optimizer.state]

    model, optimizer = model_and_optimizer(seed=1)
    load_tensors(checkpoint, model, optimizer)
    results = [
        {
            "model": [parameter.data for parameter in model.parameters()],
            "average": [optimizer.state[p]["exp_avg"] for p in model.parameters() if p in optimizer.state],
            "steps": [optimizer.state[p]["step"].item() for p in model.parameters() if p in optimizer.state],
        },
        *run_ranks(read_divided, checkpoint.folder),
    ]
    for result in results:
        torch.testing.assert_close(result["model"], [parameter.data for parameter in whole.parameters()])
        torch.testing.assert_close(result["average"], averages)
        assert result["steps"] == [3.0] * 3
    names = dict(model_tensors(checkpoint))
    assert names.keys() == {"first.weight", "first.bias", "second.weight", "unused"}
    torch.testing.assert_close(names["first.weight"], whole.first.weight.data)
