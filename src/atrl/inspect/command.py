"""What ``python -m atrl.inspect`` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from atrl.config import check_config, read_section
from atrl.data.prompts import IMAGE_MARK, VIDEO_MARK
from atrl.inspect.schemes import check_single, single_configs
from atrl.inspect.settings import InspectSettings
from atrl.inspect.terminal import painted, takes_colour
from atrl.models.asked import asked_as_trained
from atrl.report.text import printable
from atrl.types import Problem, Video

if TYPE_CHECKING:
    from atrl.inspect.weigh import Weighed
    from atrl.rollout.settings import RolloutSettings


def inspect_command(config: DictConfig, folder: Path) -> Path:
    """Answer what `config` asks, print the answer once a scheme, leave a page in `folder`; the page's path.

    Raises:
        ValueError: in lines that name what is wrong; before a model loads, as far as can be known by then.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate

    config, asked = asked_as_trained(config), HydraConfig.get()
    configs = single_configs(config, asked.overrides.task, asked.runtime.choices.get("credit"))
    for alone in configs.values():
        check_config(alone, sections={"": InspectSettings}, checks=())
    settings = read_section(config, InspectSettings)
    model, rollout = instantiate(config.model), instantiate(config.rollout)
    schemes = {name: instantiate(alone.credit) for name, alone in configs.items()}
    problem = the_problem(settings, config)
    rollout = check(problem, model, rollout, schemes)

    from atrl.inspect.page import write_page
    from atrl.inspect.weigh import answer, one_answer, token_texts, weigh

    device = _prepare_torch(settings.threads)
    loaded = model.load(folder)
    loaded.model.to(device)
    sampling = one_answer(rollout, drawn=settings.sample)
    group = answer(problem, loaded, rollout, sampling, instruction=model.instruction, seed=settings.seed)
    found = weigh(schemes, group, loaded, temperature=rollout.temperature, seed=settings.seed)
    tokens = token_texts(group, loaded.processor.tokenizer)
    print(f"{printable(problem.question)}\n")
    for one in found:
        print(f"{summary(one)}\n{painted(tokens, one.weights.tolist(), _marks(one), colour=takes_colour())}\n")
    page = write_page(folder, group, tokens, found, checkpoint=settings.checkpoint, drawn=settings.sample)
    print(f"page: {page}")
    return page


def the_problem(settings: InspectSettings, config: DictConfig) -> Problem:
    """The question of the command line, or a problem of the configured data.

    Raises:
        ValueError: if there is neither, the data has no problem of that number, or a file can't be read.
    """
    from atrl.data.images import check_images
    from atrl.data.videos import check_videos

    if settings.problem is not None:
        from hydra.utils import instantiate

        problems = instantiate(config.data).load("test")
        if settings.problem >= len(problems):
            raise ValueError(f"problem={settings.problem}: the test split has {len(problems)}, counted from 0")
        problem = problems[settings.problem]
    elif settings.question is not None:
        problem = own_problem(settings)
    else:
        raise ValueError("nothing is asked: set question='…' and image=FILE, or problem=0")
    check_images([problem])
    check_videos([problem])
    return problem


def own_problem(settings: InspectSettings) -> Problem:
    """The question, with its pictures and videos in front of it where it has no marks for them."""
    question = settings.question or ""
    if IMAGE_MARK not in question and VIDEO_MARK not in question:
        question = IMAGE_MARK * len(settings.images) + VIDEO_MARK * len(settings.videos) + question
    return Problem(
        id="question",
        question=question,
        answer="",
        images=tuple(Path(file).expanduser() for file in settings.images),
        videos=tuple(Video(Path(file).expanduser()) for file in settings.videos),
    )


def check(problem: Problem, model: Any, rollout: Any, schemes: dict[str, Any]) -> RolloutSettings:
    """`rollout`, with prompts no longer than the model takes.

    Raises:
        ValueError: for what can be known to be wrong before a model loads.
    """
    from atrl.preflight import check_attention, check_layers, check_reading, check_videos_taken, within_positions

    model.check()
    rollout = within_positions(rollout, model, quiet=True)
    rollout.sampler.check(model.model_type())
    check_videos_taken([problem], model.model_type(), rollout.sampler)
    for name, scheme in schemes.items():
        check_single(name, scheme)
        check_attention(scheme, model)
        check_layers(scheme, model)
        check_reading(scheme, [problem])
    return rollout


def summary(one: Weighed) -> str:
    """The scheme in a line; of several pictures also how the weighted tokens divide their attention."""
    anchors = "" if one.anchors is None else f", {int(one.anchors.sum())} anchors"
    text = f"{one.name}: {len(one.weights)} tokens{anchors}, weights {one.weights.min():.2f} to {one.weights.max():.2f}"
    if len(one.shares) > 1:
        text += ", attention on pictures " + " : ".join(f"{share:.0%}" for share in one.shares)
    return text


def _marks(one: Weighed) -> list[bool] | None:
    return None if one.anchors is None else one.anchors.tolist()


def _prepare_torch(threads: int | None) -> str:
    """Set the number of threads; the device for the model."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return "cuda" if torch.cuda.is_available() else "cpu"
