"""The progress bar on a terminal and in a file."""

import io
import sys

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from atrl.callbacks.progress import LINES, StepProgressBar


class Halving(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_index):
        self.log("reward", float(batch_index), prog_bar=True)
        return self.weight.square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.25)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drawn(monkeypatch, stream: io.StringIO, steps: int) -> str:
    """What a run of `steps` steps writes to `stream`."""
    monkeypatch.setattr(sys, "stdout", stream)
    trainer = Trainer(
        max_steps=steps,
        callbacks=[StepProgressBar()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Halving(), torch.utils.data.DataLoader(torch.zeros(steps, 1)))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("steps", "shown"), [(3, [1, 2, 3]), (2 * LINES + 1, [*range(2, 2 * LINES + 1, 2), 2 * LINES + 1])]
)
def test_in_a_file_a_run_leaves_whole_lines_and_not_many(monkeypatch, steps, shown):
    lines = drawn(monkeypatch, io.StringIO(), steps).splitlines()
    assert [line.split("| step ")[1].split(" ")[0] for line in lines] == [f"{step}/{steps}" for step in shown]
    assert all(line.startswith("training ") and "\r" not in line for line in lines)
    assert [float(line.split("reward=")[1].rstrip("]")) for line in lines] == [step - 1 for step in shown]
    assert lines[-1].startswith("training 100%|####################|") and "00:00 left" in lines[-1]


def test_seconds_in_a_file_are_those_that_passed(monkeypatch):
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(clock)))
    last = drawn(monkeypatch, io.StringIO(), 4).splitlines()[-1]
    assert "[00:00" not in last


def test_on_a_terminal_it_is_drawn_in_place(monkeypatch):
    text = drawn(monkeypatch, Terminal(), 3)
    assert text.count("\n") <= 1 and text.count("\rtraining ") >= 3 and "step 3/3" in text
