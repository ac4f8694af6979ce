"""The config → what is planned. This file alone knows where a setting stands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from atrl.config import check_config, read_section
from atrl.models.lora import WHOLE_MODELS
from atrl.models.published import published_config
from atrl.plan.hardware import Hardware
from atrl.plan.job import CreditCost, Engine, Job, Lengths, MaskedPass, Precision, Strategy
from atrl.plan.settings import PlannerSettings
from atrl.plan.shape import ModelShape, shape_of
from atrl.plan.table import render
from atrl.preflight import check_lengths
from atrl.process_checks import check_processes
from atrl.schema import locate
from atrl.sections import OptimizerSettings

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def plan(config: DictConfig) -> str:
    """The plan of the run that `config` describes, as text. No model, no data and no device is looked at.

    Raises:
        ValueError: for a config that could not be run either, on as many GPUs as it is planned for, a GPU that is not
            described, or a model whose shape is not known.
    """
    check_config(config)
    if config.stage == "sft":
        raise ValueError(
            "plan=true plans steps of reinforcement, and stage=sft has none: plan with stage=rl, or leave plan=true out"
        )
    hardware = hardware_of(config)
    if hardware.is_cpu and config.trainer.accelerator == "cuda":
        raise ValueError(
            "hardware=cpu describes no GPU, and trainer.accelerator=cuda takes one: plan with hardware=h100_80gb, "
            "h200_141gb or a100_80gb"
        )
    job = job_of(config)
    check_processes(config, job.gpus)
    ways, heads = job.engine.tensor_parallel, job.model.text.heads
    if heads % ways:
        raise ValueError(
            f"rollout.sampler.tensor_parallel_size={ways} must divide the model's {heads} heads, or vLLM does not start"
        )
    before = ", the supervised warm-up before it left out" if config.stage == "sft_rl" else ""
    return render(job, hardware, f"plan of {config.experiment}{before}")


def hardware_of(config: DictConfig) -> Hardware:
    """What the config says of the machines."""
    from hydra.utils import instantiate

    return instantiate(config.hardware)


def job_of(config: DictConfig) -> Job:
    """What the config asks for.

    Raises:
        ValueError: if a length does not fit into another or into the model, or this or its attention can't be planned.
    """
    settings, hardware = read_section(config.planner, PlannerSettings), hardware_of(config)
    node = hardware.per_node if config.trainer.devices == "auto" else config.trainer.devices
    gpus = node * config.trainer.num_nodes
    strategy: Strategy = "fsdp" if config.trainer.strategy == "fsdp" else "ddp"
    attention = OmegaConf.select(config, "model.attention") or "sdpa"
    if attention == "eager":
        raise ValueError("model.attention=eager keeps whole rows of attention and is not planned: use sdpa")
    precision = _precision(config, strategy)
    algorithm, lengths, tokens = config.algorithm, _lengths(config, settings), config.optimizer.micro_batch_tokens
    shape = model_shape(config.model)
    check_lengths(config.rollout, shape.text.longest)
    credit, engine = _credit(config, shape), _engine(config, hardware, precision)
    rollouts, group = config.optimizer.micro_batch_size, config.rollout.group_size
    optimizer = read_section(config.optimizer, OptimizerSettings)
    share_prompts = optimizer.runs_prompts_once(group, whole_rows=credit.whole_rows)
    deterministic = config.trainer.deterministic
    if deterministic:  # goes by prompt, whatever is set
        rollouts, tokens = group, None
    elif tokens is not None:
        rollouts = rollouts_within(tokens, lengths, group, share_prompts=share_prompts)
    return Job(
        model=shape,
        precision=precision,
        lengths=lengths,
        engine=replace(engine, sequences=min(engine.sequences, group)) if deterministic else engine,
        credit=credit,
        gpus=gpus,
        gpus_per_node=node,
        strategy=strategy,
        cpu_offload=config.trainer.cpu_offload,
        checkpointing=config.trainer.activation_checkpointing,
        flash_attention=attention != "sdpa",  # flex_attention too makes no mask and repeats no keys
        **_adapters(config),
        quantized=OmegaConf.select(config, "model.quantization") == "nf4",
        freeze_vision=bool(OmegaConf.select(config, "model.freeze_vision")),
        freeze_projector=bool(OmegaConf.select(config, "model.freeze_projector")),
        prompts=config.rollout.prompts_per_step,
        group=group,
        micro_batch=rollouts,
        micro_batch_tokens=tokens,
        share_prompts=share_prompts,
        logit_chunk=config.optimizer.logit_chunk_tokens,
        deterministic=deterministic,
        updates=algorithm.updates_per_batch,
        reference=algorithm.kl_coefficient > 0,
    )


def rollouts_within(tokens: int, lengths: Lengths, group: int, *, share_prompts: bool) -> int:
    """How many rollouts of full length are in a micro-batch of so many tokens, at least 1."""
    of_a_prompt = group if share_prompts else 1
    groups, left = divmod(tokens, lengths.tokens(of_a_prompt, 1))
    return max(1, groups * of_a_prompt + max(0, (left - lengths.prompt) // lengths.response))


def model_shape(model: DictConfig) -> ModelShape:
    """The shape of the model that the group `model` names, of its configuration alone."""
    path = OmegaConf.select(model, "path")
    if path is None:  # built here, in a shape that its class knows
        built: Any = locate(model["_target_"])
        return shape_of(built.configuration(), built.name)
    return shape_of(_configuration(path), path)


def _configuration(path: str) -> dict[str, Any]:
    from atrl.models.load import resolve_checkpoint

    known = published_config(path)
    if known is not None:
        return known
    source = resolve_checkpoint(path)
    file = Path(source) / "config.json"
    if not file.is_file():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            file = Path(hf_hub_download(source, "config.json"))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ValueError(
                f"the shape of model.path={path} is not known: the hub can't be read ({type(error).__name__}); name a "
                "folder with its config.json"
            ) from error
    return json.loads(file.read_text(encoding="utf-8"))


def _adapters(config: DictConfig) -> dict[str, Any]:
    """Which matrices have adapters, of which rank."""
    from hydra.utils import instantiate

    lora = instantiate(OmegaConf.select(config, "model.lora"))
    if lora is None:
        return {}
    if lora.modules not in WHOLE_MODELS:
        raise ValueError(
            f"model.lora.modules={lora.modules} is not planned, because it names single layers: use "
            f"{' or '.join(WHOLE_MODELS)}"
        )
    return {"lora_rank": lora.rank, "lora_vision": lora.modules == "everything"}


def _precision(config: DictConfig, strategy: str) -> Precision:
    kept = BYTES[OmegaConf.select(config, "model.dtype") or "float32"]
    if config.trainer.precision == "32-true":
        return Precision(weights=kept, compute=kept)
    # FSDP casts whole blocks, autocast single products.
    return Precision(weights=kept, compute=2, adapter=2, autocast=kept == 4 and strategy == "ddp")


def _lengths(config: DictConfig, settings: PlannerSettings) -> Lengths:
    rollout = config.rollout
    prompt = settings.prompt_tokens or rollout.max_prompt_tokens
    image = prompt if settings.image_tokens is None else settings.image_tokens
    mean = settings.response_tokens or rollout.max_response_tokens
    for name, value, key, limit in (
        ("prompt_tokens", prompt, "rollout.max_prompt_tokens", rollout.max_prompt_tokens),
        ("image_tokens", image, "the prompt's tokens", prompt),
        ("response_tokens", mean, "rollout.max_response_tokens", rollout.max_response_tokens),
    ):
        if value > limit:
            raise ValueError(f"planner.{name} must be at most {limit} ({key}), got {value}")
    return Lengths(prompt=prompt, image=image, response=rollout.max_response_tokens, response_mean=mean)


def _engine(config: DictConfig, hardware: Hardware, precision: Precision) -> Engine:
    sampler = config.rollout.sampler
    if "url" in sampler:
        return Engine(name="server")
    if "transformers" in sampler["_target_"]:
        # Autocast rotates keys in float32 and leaves values in 16 bits.
        held = 3 if precision.autocast else precision.compute
        return Engine(name="transformers", weights=held, sequences=sampler.max_batch_sequences)
    return Engine(
        name="vllm",
        weights=BYTES[sampler.dtype],
        share=sampler.gpu_memory_utilization,
        cache=sampler.cpu_cache_gib * 2**30 if hardware.is_cpu else None,
        sequences=sampler.max_num_seqs,
        tensor_parallel=sampler.tensor_parallel_size,
        sleeps=sampler.sleep_level > 0,
    )


def _credit(config: DictConfig, shape: ModelShape) -> CreditCost:
    from hydra.utils import instantiate

    from atrl.credit.clustering import ClusteringCredit

    if not config.credit:
        return CreditCost()
    scheme = instantiate(config.credit)
    if scheme.head_search is not None:  # any will do: they cost the same
        scheme = scheme.with_heads(tuple((layer, 0) for layer in range(scheme.head_search.count)))
    masked: MaskedPass = (
        "no" if scheme.picture_mask is None else "gradient" if scheme.needs_masked_gradient else "forward"
    )
    parts = getattr(scheme, "schemes", (scheme,))
    clusters = [part for part in parts if isinstance(part, ClusteringCredit) and part.cuts]
    return CreditCost(
        name=scheme.name,
        heads_read=_heads_read(scheme, shape),
        edges=sum(_edges(request, shape) for request in scheme.requests),
        clusters=bool(clusters),
        masked=masked,
        scores_first=scheme.scope == "batch",
        whole_rows=scheme.needs_whole_rows,
        background=any(part.workers != 0 for part in clusters),
    )


def _edges(request: Any, shape: ModelShape) -> int:
    """Edges that are read of each token, over all layers."""
    count = shape.text.layers
    if getattr(request, "layers", None) is not None:
        count = len(request.layers)
    elif getattr(request, "heads", None) is not None:
        count = min(count, len({layer for layer, _ in request.heads}))
    return count * getattr(request, "neighbours", 0)


def _heads_read(scheme: Any, shape: ModelShape) -> int:
    """Heads whose attention is read, over all layers."""
    every, count = shape.text.layers * shape.text.heads, 0
    for request in scheme.requests:
        heads, layers = getattr(request, "heads", None), getattr(request, "layers", None)
        if not hasattr(request, "sink_factor"):  # hidden states, or queries and keys: no rows of attention
            continue
        count += len(heads) if heads is not None else every if layers is None else len(layers) * shape.text.heads
    return count
