"""Reading a model's layers on the way through a forward pass, without changing what the model computes.

transformers lets one function stand in for the attention of every layer. Ours calls the kernel that the model would
have used, returns its result untouched, and shows queries and keys to the readers of the capture that is open.
Hidden states are shown to readers by forward hooks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from atrl.autocast import without_autocast
from atrl.credit.base import Reader, Request
from atrl.credit.masks import MaskCheck, check_options
from atrl.credit.picture_columns import picture_columns
from atrl.credit.regions import Regions, Row, padded_regions, visual_token_ids
from atrl.models.attention import kept_logsumexp, register_attention, set_text_attention, text_attention
from atrl.models.families import check_readable
from atrl.models.prompt_states import prompts_alone
from atrl.timing import WorkClock
from atrl.types import Experience

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RECORDER: ContextVar[Recorder | None] = ContextVar("atrl_recorder", default=None)


class AttentionProbe:
    """Taps the attention of `model`'s language half for as long as a `capture` is open.

    Args:
        model: any transformers vision-language model whose attention goes through the attention interface and is
            causal, with sliding windows or without. In others the pass that is read ends in an error (`masks.py`).
        requests: what to read.

    Raises:
        ValueError: for a language half whose attention is known not to be what readers suppose.
    """

    def __init__(self, model: PreTrainedModel, requests: Sequence[Request]) -> None:
        check_readable(model.config.get_text_config().model_type, "the attention probe")
        self._model, self._requests = model, tuple(dict.fromkeys(requests))
        self._kernel = text_attention(model)
        self._longest: dict[tuple[int, bool], int] = {}
        self._image_token_ids = visual_token_ids(model.config)
        self.attach()

    def attach(self) -> None:
        """Tap the model's kernel; done at the beginning, and again after `detach`."""
        set_text_attention(self._model, _register_tap(self._kernel))

    def detach(self) -> None:
        """Give the model its own kernel back."""
        set_text_attention(self._model, self._kernel)

    @contextmanager
    def capture(self, batch: Experience, requests: Sequence[Request] | None = None) -> Iterator[Recorder]:
        """Record the forward pass over `batch` inside the block; read `.results()` after it.

        `requests` are read in the place of the probe's own.
        """
        asked = self._requests if requests is None else requests
        rows: set[Row] = {getattr(request, "row", "predicting") for request in asked}
        regions: dict[str, Regions] = {row: padded_regions(batch, self._image_token_ids, row) for row in rows}
        if any(getattr(request, "by_picture", False) for request in asked):
            pictures = picture_columns(batch, next(iter(regions.values())), self._model.config)
            regions = {row: replace(found, pictures=pictures) for row, found in regions.items()}
        with self.capture_regions(regions, asked) as recorder:
            yield recorder

    @contextmanager
    def capture_regions(
        self, regions: dict[str, Regions], requests: Sequence[Request] | None = None
    ) -> Iterator[Recorder]:
        """The same for any layout of the batch: regions by row ("predicting", "own"), as far as requests name it."""
        readers = {
            request: request.reader(self._model, regions[getattr(request, "row", "predicting")])
            for request in (self._requests if requests is None else requests)
        }
        again = self._model.training and self._model.is_gradient_checkpointing
        masks = MaskCheck(tuple(regions.values()), self._longest)
        recorder = Recorder(readers, masks=masks, layers_run_again=again)
        token = _RECORDER.set(recorder)
        try:
            with ExitStack() as hooks:
                for reader in readers.values():
                    if hasattr(reader, "hooks"):
                        hooks.enter_context(reader.hooks(self._model))
                yield recorder
        finally:
            _RECORDER.reset(token)


class Recorder:
    """Hands what passes by to the readers that want it, and has `masks` check that layers look where they suppose.

    `layers_run_again` says that activations are checkpointed.
    """

    def __init__(
        self, readers: dict[Request, Reader], *, masks: MaskCheck | None = None, layers_run_again: bool = False
    ) -> None:
        self._readers, self.layers_run_again = readers, layers_run_again
        self._masks = masks or MaskCheck(())
        self._attentive = [reader for reader in readers.values() if hasattr(reader, "read_attention")]
        self._clock = WorkClock()

    @property
    def listens(self) -> bool:
        """Whether something is read of hidden states, which a pass over responses alone has not of their prompts."""
        return any(hasattr(reader, "hooks") for reader in self._readers.values())

    @property
    def seconds(self) -> float:
        """Spent on reading during the pass; a GPU is waited for."""
        return self._clock.seconds + sum(getattr(reader, "seconds", 0.0) for reader in self._readers.values())

    @torch.no_grad()
    def read(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, *, mask: Mapping[str, Any], **options: Any
    ) -> None:
        """Queries and keys of one layer, as they come; `options` say in which type the kernel sees them.

        `mask` is what `MaskCheck.compare` wants to know of the layer's mask.
        """
        if not self._attentive:
            return
        # Without autocast, or products would be taken in bfloat16.
        with self._clock.running(query.device), without_autocast():
            self._masks.compare(layer, query, key, **mask, window=options.get("sliding_window"))
            for reader in self._attentive:
                reader.read_attention(layer, query.detach(), key.detach(), **options)

    @torch.no_grad()
    def results(self) -> dict[Hashable, Any]:
        """By request, what its reader found.

        Raises:
            AssertionError: if a layer was read whose rows look elsewhere than readers suppose.
        """
        self._masks.finish()
        with without_autocast():  # some of it is worked out now
            return {request: reader.result() for request, reader in self._readers.items()}


def _register_tap(kernel: str) -> str:
    """The name under which the tapped version of `kernel` is known to transformers."""

    def tapped(module, query, key, value, attention_mask, **options):
        function, layer = _kernel_function(kernel, module), _without_tap(module, kernel)
        output = function(layer, query, key, value, attention_mask, **options)
        recorder = None if prompts_alone() else _RECORDER.get()
        if recorder is not None:
            check_options(module.layer_idx, options)
            softcap = None if kernel == "sdpa" else options.get("softcap")  # torch's kernels have none
            whole = options.get("sliding_window") is None and softcap is None
            kept = kept_logsumexp(output[0]) if whole and not recorder.layers_run_again else None
            recorder.read(
                module.layer_idx,
                query,
                key,
                mask=_mask_of(kernel, module, attention_mask, options.get("is_causal")),
                dtype=_autocast_dtype(query),
                logsumexp=kept,
                scaling=options.get("scaling") or query.shape[-1] ** -0.5,
                sliding_window=options.get("sliding_window"),
                softcap=softcap,
            )
        return output

    return register_attention(f"atrl_probe_{kernel}", tapped, masks_of=kernel)


def _mask_of(kernel: str, module: torch.nn.Module, mask: Any, causal: bool | None) -> dict[str, Any]:
    """Where a layer's rows may look, as transformers' kernels take it: without a mask, eager attention looks everywhere
    and sdpa goes by what it is told or else by the layer."""
    by_itself = kernel != "eager" and bool(getattr(module, "is_causal", True) if causal is None else causal)
    return {"mask": mask, "written": kernel in ("eager", "sdpa"), "causal": by_itself}


def _autocast_dtype(states: torch.Tensor) -> torch.dtype | None:
    """In which the kernel gets states under autocast: its scores, and the log-sum-exp that it keeps, are of these."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _kernel_function(kernel: str, module: torch.nn.Module) -> Callable:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if kernel == "eager":  # every model file brings its own
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[kernel]


class _Instead:
    """Stands in for `original`, but for some attributes, which leaves the original as it is."""

    def __init__(self, original: Any, **attributes: Any) -> None:
        self.__dict__.update(attributes)
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def _without_tap(module: torch.nn.Module, kernel: str) -> Any:
    """A layer's attention as `kernel` would meet it: flash attention looks up its own name in the configuration."""
    if not hasattr(module, "config"):
        return module
    return _Instead(module, config=_Instead(module.config, _attn_implementation=kernel))
