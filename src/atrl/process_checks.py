"""What must hold between the number of processes and the rest of a config; `config.CHECKS` lists these rules."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf


def _processes(config: DictConfig) -> int | None:
    """How many processes the config asks for; None where that depends on the machine, or is not in it."""
    devices, nodes = OmegaConf.select(config, "trainer.devices"), OmegaConf.select(config, "trainer.num_nodes")
    return devices * (nodes or 1) if isinstance(devices, int) else None


def processes_have_work(config: DictConfig, processes: int | None = None) -> str | None:
    """Every process takes its share of each batch's prompts, of the stages that the run has.

    Of how many `processes`, the config says where the machine does not.
    """
    processes = processes or _processes(config)
    if processes is None:
        return None
    stages = {"rl": "rollout.prompts_per_step", "sft": "sft.batch_size"}
    asked = (OmegaConf.select(config, "stage") or "sft_rl").split("_")
    for key in (key for stage, key in stages.items() if stage in asked):
        size = OmegaConf.select(config, key)
        if size is not None and size < processes:
            return f"{key} must be at least {processes}, got {size}: each of {processes} processes takes a share of it"
    return None


def sharded_ranks_work_alike(config: DictConfig, processes: int | None = None) -> str | None:
    """Ranks that divide a model run it equally often, and the reference must be copied before it is divided."""
    if OmegaConf.select(config, "trainer.strategy") != "fsdp":
        return None
    processes, prompts = processes or _processes(config), OmegaConf.select(config, "rollout.prompts_per_step")
    if processes is not None and prompts is not None and prompts % processes:
        return (
            f"rollout.prompts_per_step must be a multiple of {processes}, the processes that divide the policy "
            f"(trainer.strategy=fsdp), got {prompts}"
        )
    has_reference = (OmegaConf.select(config, "algorithm.kl_coefficient") or 0) > 0
    if has_reference and OmegaConf.select(config, "stage") == "sft_rl":
        return (
            "stage=sft_rl with algorithm.kl_coefficient > 0 and trainer.strategy=fsdp would copy a divided model: run "
            "stage=sft first, and stage=rl with model.path set to the model that it leaves"
        )
    return None


def engines_are_whole(config: DictConfig, processes: int | None = None) -> str | None:
    """Processes that share an engine inside them are as many as it is made of, and none is left over."""
    sharing = OmegaConf.select(config, "rollout.sampler.tensor_parallel_size")
    processes = processes or _processes(config)
    if sharing is None or processes is None or OmegaConf.select(config, "stage") == "sft":
        return None
    return undivided(processes, sharing)


def undivided(processes: int, sharing: int) -> str | None:
    """One line where so many `processes` aren't whole groups of `sharing`, which have an engine together."""
    if processes % sharing == 0:
        return None
    return (
        f"rollout.sampler.tensor_parallel_size={sharing} must divide the run's number of processes, which is "
        f"{processes}: the engine has none of its own, it runs in those that train; set it to 1, or trainer.devices to "
        f"a multiple of {sharing}"
    )


def check_processes(config: DictConfig, processes: int) -> None:
    """Raises ValueError, a line a problem, where so many processes don't suit the config, which may leave them open."""
    rules = (processes_have_work, sharded_ranks_work_alike, engines_are_whole)
    if problems := [problem for rule in rules if (problem := rule(config, processes))]:
        raise ValueError("\n".join(problems))
