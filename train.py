"""Train a policy: `python train.py [experiment=NAME] [key=value …]`; `--help` lists what there is."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from atrl.cli import run


def main(config: DictConfig) -> float | None:
    """Compose, build, load, train, and leave a report; a job of a sweep does so in a process of its own.

    Returns:
        In a sweep the held-out accuracy that the job ends with, which a sweeper that searches goes by.
    """
    from hydra.core.hydra_config import HydraConfig

    if config.plan:
        from atrl.plan.read import plan

        print(plan(config))
        return None

    from atrl.models.asked import asked_as_trained
    from atrl.sweep import job

    config = asked_as_trained(config)  # before a sweep compares it with what its finished jobs were run with
    if job.in_sweep():
        return job.run_job(config, Path(__file__).resolve())

    from atrl import pipeline
    from atrl.claim import claim
    from atrl.launch import main_process
    from atrl.resume import check_same_base, check_unused, is_finished

    folder = Path(HydraConfig.get().runtime.output_dir)
    if main_process():  # before another process of this run writes there
        claim(folder)
        if config.resume is None:
            check_unused(folder)
    parts = pipeline.instantiate_parts(config, folder)
    pipeline.prepare_process(parts)
    data = pipeline.load_data(parts)  # bad data stops here, before any model loads
    start = pipeline.starting_point(config, parts, data)
    if start is not None and is_finished(folder, start, parts.trainer.max_steps):
        print(f"nothing is left to do: {start.folder} comes after step {start.step} of {parts.trainer.max_steps}")
        return None
    pipeline.write_settings(config, folder)
    loaded = parts.model.load(pipeline.work_folder(folder))

    from atrl import leave, parallel, stages

    warms_up = parts.run.stage != "rl" and start is None
    warmed_up = stages.warm_up(parts, data, loaded) if warms_up else None
    settings = pipeline.settings_to_keep(config, data, loaded)
    if start is not None:
        check_same_base(start, loaded.folder)  # also of a model that was only built now
        # What earlier parts took counts.
        parts = replace(parts, started=parts.started - start.state["seconds"])
    trained = None
    if parts.run.stage != "sft":
        trained = stages.reinforce(parts, data, loaded, settings=settings, start=start)
    leave.finish_run(parts, data, loaded, warmed_up, trained)
    parallel.leave_group()
    return None


if __name__ == "__main__":
    sys.exit(run(main, config_name="train"))
