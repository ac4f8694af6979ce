"""A checkpoint is asked in the words that it was trained with."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from atrl.models.asked import MARK_ANSWER, NOTE, asked_as_trained, note_instruction, trained_instruction
from atrl.sweep import job

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that asked for a box."""
    (tmp_path / "run" / "model").mkdir(parents=True)
    OmegaConf.save({"model": {"instruction": "Box it."}}, tmp_path / "run" / "config.yaml")
    return tmp_path / "run"


def composed(config: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, overrides=list(overrides))


def test_a_run_says_what_it_asked_and_so_does_its_model(run: Path) -> None:
    assert trained_instruction(str(run)) == trained_instruction(str(run / "model")) == "Box it."
    assert trained_instruction("tiny") == ""
    assert trained_instruction(str(run.parent)) is None
    assert trained_instruction("owner/name") is None
    (run / "config.yaml").write_text("model: {path: x}")
    assert trained_instruction(str(run)) is None
    (run / "config.yaml").write_text("- a list")
    assert trained_instruction(str(run)) is None


def test_a_model_that_was_written_says_it_wherever_it_goes(run: Path, tmp_path: Path) -> None:
    note_instruction(run / "model", "Say it.")
    assert trained_instruction(str(run)) == trained_instruction(str(run / "model")) == "Say it."
    elsewhere = (run / "model").rename(tmp_path / "elsewhere")
    assert trained_instruction(str(elsewhere)) == "Say it."
    note_instruction(run, None)
    assert not (run / NOTE).exists()
    for broken in ("{", "[]", "{}", '{"instruction": 1}'):
        (elsewhere / NOTE).write_text(broken)
        with pytest.raises(ValueError, match=r"asked\.json must hold"):
            trained_instruction(str(elsewhere))


@pytest.mark.parametrize("benchmark", ["jsonl", "geometry", "easy_vqa"])
def test_local_problems_are_asked_as_in_training(run: Path, benchmark: str) -> None:
    def asked(checkpoint: object, *overrides: str) -> tuple[str, str]:
        config = composed("evaluate", f"benchmark={benchmark}", f"checkpoint='{checkpoint}'", *overrides)
        settled = asked_as_trained(config)
        assert config.benchmark[benchmark].get("instruction") is None or overrides, "the caller's config was changed"
        return settled.benchmark[benchmark].instruction, settled.model.instruction

    assert asked(run) == ("Box it.", "Box it.")
    assert asked("tiny") == ("", "")
    assert asked("owner/name") == (MARK_ANSWER, MARK_ANSWER)
    assert asked(run, f"benchmark.{benchmark}.instruction='Say it.'") == ("Say it.", "Box it.")


def test_official_words_stay_and_so_do_those_of_the_command_line(run: Path) -> None:
    official = composed("evaluate", "benchmark=hallusionbench", f"checkpoint='{run}'")
    assert asked_as_trained(official).benchmark.hallusionbench.instruction == "Please answer yes or no."
    inspected = composed("inspect", f"checkpoint='{run}'")
    assert asked_as_trained(inspected).model.instruction == "Box it."
    told = composed("inspect", f"checkpoint='{run}'", "model.instruction=''")
    assert asked_as_trained(told).model.instruction == ""


def test_a_missing_checkpoint_is_left_to_the_check_that_names_it() -> None:
    settled = asked_as_trained(composed("evaluate", "benchmark=jsonl"))
    assert OmegaConf.is_missing(settled, "checkpoint")
    assert (settled.model.instruction, settled.benchmark.jsonl.instruction) == (MARK_ANSWER, MARK_ANSWER)


def test_a_run_goes_on_in_the_words_of_the_run_before(run: Path) -> None:
    def asked(*overrides: str) -> str:
        return asked_as_trained(composed("train", *overrides)).model.instruction

    assert asked("model=pretrained", f"model.path='{run}'") == "Box it."
    assert asked("model=pretrained", "model.path=owner/name") == asked("model=qwen2_5_vl_7b") == MARK_ANSWER
    assert asked("model=pretrained", f"model.path='{run}'", "model.instruction='Say it.'") == "Say it."
    assert asked() == ""


def test_a_sweep_compares_its_jobs_in_the_words_that_they_are_asked_in(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished job's `config.yaml` holds them; next to a null it would look like a job of other settings."""
    compared: list[DictConfig] = []
    monkeypatch.syspath_prepend(str(CONF.parent))
    monkeypatch.setattr(job, "in_sweep", lambda: True)
    monkeypatch.setattr(job, "run_job", lambda config, script: compared.append(config))
    import train

    train.main(composed("train", "model=pretrained", f"model.path='{run}'"))
    assert [config.model.instruction for config in compared] == ["Box it."]
