"""How several processes train one policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from atrl.sharding import Sharding

if TYPE_CHECKING:
    from atrl.sections import Precision, TrainerSettings


def strategy_of(settings: TrainerSettings, processes: int) -> Strategy | str:
    """What `trainer.strategy` asks for, in Lightning's terms."""
    if settings.strategy == "fsdp":
        return ShardedStrategy(processes, offload=settings.cpu_offload)
    return ReplicatedStrategy() if processes > 1 else "auto"


def sharding_of(settings: TrainerSettings) -> Sharding:
    """How `trainer.strategy=fsdp` divides a model."""
    compute_dtype = torch.bfloat16 if settings.precision == "bf16-mixed" else None
    return Sharding(compute_dtype=compute_dtype, offload=settings.cpu_offload)


def precision_of(settings: TrainerSettings) -> Precision:
    """What Lightning is to do about `trainer.precision`.

    A divided model computes in bfloat16 by itself: under autocast whole float32 parameters would be gathered.
    """
    return "32-true" if settings.strategy == "fsdp" else settings.precision


class ShardedStrategy(ModelParallelStrategy):
    """A policy that the ranks divide among them.

    Args:
        processes: that divide it.
        offload: each rank's part stays in host memory between uses.
    """

    def __init__(self, processes: int, *, offload: bool) -> None:
        self._offload = offload
        # Parts in host memory are put together there, for the sampler and for checkpoints, which NCCL can't.
        backend = "cpu:gloo,cuda:nccl" if offload and torch.cuda.is_available() else None
        # One dimension of ranks: Lightning's "auto" would split single matrices among the processes of a node.
        super().__init__(
            data_parallel_size=processes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=backend,
        )

    def model_to_device(self) -> None:
        """Move what is not on the device yet; of an offloaded model the buffers alone, as FSDP2 asks."""
        if not self._offload:
            super().model_to_device()
            return
        assert self.model is not None, "Lightning connects the model first"
        for module in self.model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to(self.root_device))


class ReplicatedStrategy(DDPStrategy):
    """A whole policy in every process; the step itself adds the gradients up (`parallel.add_gradients`).

    `DistributedDataParallel` is left out: it averages at every backward pass and waits for parameters that a rank's
    rollouts may not touch (the vision tower, where no prompt has a picture). One sum a step is all that is needed.
    """

    def configure_ddp(self) -> None:
        """Nothing is wrapped, but all start from the first rank's parameters."""
        from torch.distributed import broadcast

        for parameter in self.lightning_module.parameters():
            broadcast(parameter.data, src=0)


class EveryStep(_TrainingEpochLoop):
    """Lightning's steps, but a StopIteration that leaves one is an error: Lightning takes it for the end of the data,
    and would end the run there without a word."""

    @classmethod
    def of(cls, trainer: Trainer) -> EveryStep:
        """In the place of the loop that `trainer` has."""
        loop = trainer.fit_loop.epoch_loop
        return cls(trainer, min_steps=loop.min_steps, max_steps=loop.max_steps)

    def advance(self, data_fetcher: Any) -> None:
        """One step.

        Raises:
            RuntimeError: if a StopIteration comes out of it.
        """
        try:
            super().advance(data_fetcher)
        except StopIteration as error:
            raise RuntimeError("a training step raised StopIteration, as next() does of nothing: see above") from error


class EndsAlone(_FitLoop):
    """Lightning's loop without a step, which callbacks are told the beginning and the end of all the same."""

    @classmethod
    def of(cls, trainer: Trainer) -> EndsAlone:
        """In the place of the loop that `trainer` has."""
        loop = cls(trainer, min_epochs=trainer.fit_loop.min_epochs, max_epochs=trainer.fit_loop.max_epochs)
        loop.epoch_loop = trainer.fit_loop.epoch_loop
        return loop

    @property
    def skip(self) -> bool:
        """Never, where Lightning skips all if there is nothing to train on."""
        return False
