"""What a run asks of the machine, the model and the data, looked at before a model loads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from atrl.data.generated import examples
from atrl.models.families import WITH_VIDEO, WITHOUT_PATCHES, check_readable

if TYPE_CHECKING:
    from atrl.credit.base import CreditScheme
    from atrl.models.load import PretrainedModel, ScratchModel
    from atrl.models.smollm2 import SmolLM2Model
    from atrl.rollout.settings import RolloutSettings
    from atrl.sections import TrainerSettings
    from atrl.types import Problem


def check_devices(settings: TrainerSettings) -> None:
    """Raises ValueError, in one line, where there are fewer CUDA devices than each node is to use."""
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.accelerator == "cuda" and not there:
        raise ValueError("trainer.accelerator=cuda needs a CUDA device, and torch finds none: use trainer=cpu")
    on_cuda = settings.accelerator != "cpu" and there
    if on_cuda and settings.devices != "auto" and settings.devices > there:
        raise ValueError(
            f"trainer.devices must be at most {there}, the CUDA devices that torch finds, got {settings.devices}"
        )


def check_engine(sampler: Any, processes: int) -> None:
    """Raises ValueError, in one line, where the machine or so many `processes` don't suit an engine inside them.

    Other samplers pass.
    """
    if hasattr(sampler, "check_machine"):
        sampler.check_machine(processes)


def check_lengths(rollout: RolloutSettings, positions: int | None) -> None:
    """Raises ValueError, in one line, where the longest prompt and response have more tokens than `positions`.

    Beyond these an engine does not start, and transformers rotates queries and keys as it never did in training.
    """
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    if positions is not None and longest > positions:
        raise ValueError(
            f"rollout.max_prompt_tokens={rollout.max_prompt_tokens} and "
            f"rollout.max_response_tokens={rollout.max_response_tokens} are {longest} tokens, and the model was made "
            f"for {positions}: lower one of them"
        )


def within_positions(
    rollout: RolloutSettings, model: PretrainedModel | ScratchModel | SmolLM2Model, *, quiet: bool = False
) -> RolloutSettings:
    """`rollout` with prompts no longer than what the model leaves beside a response; a line says so where that is less.

    Where limits are a benchmark's, and a prompt that is longer counts as not answered whatever is done about it.

    Args:
        quiet: no line, where a prompt that is longer will be an error.

    Raises:
        ValueError: if a response alone is longer than the model takes.
    """
    positions = model.positions()
    if positions is None or rollout.max_prompt_tokens + rollout.max_response_tokens <= positions:
        return rollout
    room = positions - rollout.max_response_tokens
    if room < 1:
        check_lengths(rollout, positions)
    if not quiet:
        print(
            f"the model was made for {positions} tokens: prompts of up to {room} are asked "
            f"(rollout.max_prompt_tokens={rollout.max_prompt_tokens}), beside responses of up to "
            f"{rollout.max_response_tokens}"
        )
    return replace(rollout, max_prompt_tokens=room)


def factors_of(scheme: CreditScheme | None) -> tuple[Any, ...]:
    """What a run's credit multiplies; nothing where it has none."""
    return () if scheme is None else scheme.factors


def check_reads(scheme: CreditScheme | None) -> None:
    """Raises ValueError for credit that reads layers in order to compare rollouts: what is read stays on its rank."""
    for factor in factors_of(scheme):
        if factor.scope == "batch" and (factor.head_search is not None or factor.requests):
            raise ValueError(
                f"credit={factor.name} compares rollouts and reads layers, which one scheme can't: let one read and "
                "another compare, and multiply them (atrl.credit.product.ProductCredit)"
            )


def check_attention(scheme: Any, model: PretrainedModel | ScratchModel | SmolLM2Model) -> None:
    """Raises ValueError, in one line, where `scheme` reads layers and the model's can't be read.

    Only the configuration of the model is read, and only where a scheme reads.
    """
    for factor in factors_of(scheme):
        if factor.head_search is not None or factor.requests:
            check_readable(model.text_type(), f"credit={factor.name}")


def check_masks(scheme: CreditScheme | None, model_type: str) -> None:
    """Raises ValueError, in one line, for credit that masks patches where the model's processor makes none."""
    if model_type not in WITHOUT_PATCHES:
        return
    for factor in factors_of(scheme):
        for asked, instead in _masking(factor):
            raise ValueError(
                f"{asked} masks patches, and pictures of a model of type {model_type} are cut into none: use a "
                f"Qwen-VL model, or {instead}"
            )


def _masking(factor: CreditScheme) -> Iterator[tuple[str, str]]:
    """What of a scheme masks pictures, and what may be set in its place."""
    if factor.picture_mask is not None:
        yield f"credit={factor.name}", "another scheme"
    if factor.head_search is not None and factor.head_search.criterion == "dependency":
        yield "credit.head_criterion=dependency", "credit.head_criterion=relative_contrast"


def check_layers(scheme: Any, model: PretrainedModel | ScratchModel | SmolLM2Model) -> None:
    """Raises ValueError, in one line, where `scheme` names a layer or head that the model hasn't, or an empty list.

    None names nothing, nor does a word. Products are looked into. Only the configuration of the model is read, and
    only where a scheme names some.
    """
    options = ("layers", "heads", "head_numbers")
    naming = [part for part in factors_of(scheme) if any(_named(part, option) for option in options)]
    if not naming:
        return
    layers, heads = model.attention_shape()
    known = f"the model has layers 0 to {layers - 1} of heads 0 to {heads - 1}"
    for part in naming:
        for option in options:
            if _named(part, option) and not getattr(part, option):
                raise ValueError(f"credit.{option} is an empty list, which reads nothing: null reads all")
        for layer in part.layers if _named(part, "layers") else ():
            if not 0 <= layer < layers:
                raise ValueError(f"credit.layers names layer {layer}: {known}")
        for head in part.head_numbers if _named(part, "head_numbers") else ():
            if not 0 <= head < heads:
                raise ValueError(f"credit.head_numbers names head {head}: {known}")
        for layer, head in part.heads if _named(part, "heads") else ():
            if not (0 <= layer < layers and 0 <= head < heads):
                raise ValueError(f"credit.heads names [{layer}, {head}]: {known}")


def check_reading(scheme: Any, problems: Sequence[Problem]) -> None:
    """Raises ValueError, in one line, where `scheme` goes by reading rules and none of the problems has one."""
    if not any(part.needs_reading for part in factors_of(scheme)):
        return
    if all(problem.reading is None for problem in examples(problems)):
        raise ValueError("credit=oracle needs problems with a reading rule, and these have none: try data=geometry")


def check_targets(problems: Sequence[Problem]) -> None:
    """Raises ValueError, in one line, where one of the problems has no worked answer, which a warm-up learns from."""
    first = next((problem.id for problem in examples(problems) if not problem.target), None)
    if first is not None:
        raise ValueError(
            f"problem {first} has no worked answer to learn from: stage=sft needs data with targets (data=geometry or "
            "data=easy_vqa), or start at stage=rl from a trained model"
        )


def check_pictures(scheme: CreditScheme | None, problems: Sequence[Problem]) -> None:
    """Raises ValueError, in one line, where heads are told apart by pictures and none of the problems has one.

    Else the run would find out after its model is loaded, and has answered as many problems as heads are judged by.
    """
    if scheme is None or scheme.head_search is None:
        return
    if not any(problem.images or problem.videos for problem in examples(problems)):
        raise ValueError(
            "credit.heads=auto finds heads by what they look at in pictures, and these problems have none: set "
            "credit.heads=null or name the heads"
        )


def check_videos_taken(problems: Sequence[Problem], model_type: str, sampler: Any) -> None:
    """Raises ValueError, in one line, where one of the problems has a video and model or sampler take none."""
    first = next((problem.id for problem in examples(problems) if problem.videos), None)
    if first is None:
        return
    if model_type not in WITH_VIDEO:
        raise ValueError(
            f"problem {first} has a video, and a model of type {model_type} takes none: use one of "
            f"{', '.join(WITH_VIDEO)}, or list the frames as images"
        )
    if not sampler.takes_videos:
        raise ValueError(
            f"problem {first} has a video, and rollout={sampler.name} sends pictures alone: use rollout=vllm or "
            "rollout=transformers"
        )


def _named(scheme: Any, option: str) -> bool:
    """Whether `scheme` has a list for `option`, and neither all nor "auto"."""
    return getattr(scheme, option, None) is not None and not isinstance(getattr(scheme, option), str)
