"""Train a policy: `python train.py [experiment=NAME] [key=value …]`; `--help` lists what there is."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from atrl.cli import run


def main(config: DictConfig) -> None:
    """Compose, build, load, train, and leave a report."""
    from hydra.core.hydra_config import HydraConfig

    if config.plan:
        from atrl.plan.read import plan

        print(plan(config))
        return

    from atrl import pipeline

    folder = Path(HydraConfig.get().runtime.output_dir)
    parts = pipeline.instantiate_parts(config, folder)
    pipeline.prepare_process(parts)
    data = pipeline.load_data(parts)  # bad data stops here, before any model loads
    loaded = parts.model.load(pipeline.work_folder(folder))

    from atrl import leave, stages

    warmed_up = stages.warm_up(parts, data, loaded) if parts.run.stage != "rl" else None
    trained = stages.reinforce(parts, data, loaded) if parts.run.stage != "sft" else None
    leave.finish_run(config, parts, data, loaded, warmed_up, trained)


if __name__ == "__main__":
    sys.exit(run(main, config_name="train"))
