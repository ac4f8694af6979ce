"""What a user sees of a mistake: one line, an exit code and no traceback; and what is left of a bug."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from atrl.cli import _Job, user_message
from atrl.explain import overrides_first
from atrl.suggest import did_you_mean, did_you_mean_or_all, nearest_keys

ROOT = Path(__file__).parents[2]
CREDIT = "buggy, faulty, numeric, package, ratio, uniform, worker"  # the options of the program's group

PROGRAM = """
    from __future__ import annotations

    import json
    import os
    import sys
    from dataclasses import dataclass
    from pathlib import Path

    from atrl.alarms import AlarmStop
    from atrl.cli import run
    from atrl.config import check_config
    from atrl.interrupts import Interrupted
    from atrl.sections import RunSettings


    @dataclass(frozen=True, kw_only=True)
    class Ratio:
        anchor_ratio: float = 0.15

        def __post_init__(self):
            if self.anchor_ratio > 1:
                raise ValueError(f"credit.anchor_ratio must be in (0, 1], got {self.anchor_ratio}")


    def missing_value(config):
        config.trainer.later


    def no_such_file(config):
        Path("absent.jsonl").read_text()


    def interrupted_by_lightning(config):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)


    def interrupted(config):
        raise KeyboardInterrupt


    def told_to_end(config):
        raise Interrupted(15)


    def alarmed(config):
        raise AlarmStop("step 3: too hot")


    def library_error(config):
        json.loads("{")


    def python_error(config):
        int("many")


    def key_error(config):
        {}["key"]


    def show_environment(config):
        for name in ("HYDRA_FULL_ERROR", "VLLM_LOGGING_LEVEL", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY"):
            print(name, os.environ.get(name))


    def log(config):
        import logging

        for name in ("lightning.pytorch", "atrl.something"):
            logging.getLogger(name).setLevel(logging.INFO)
            logging.getLogger(name).info("%s says hello", name)


    def main(config):
        check_config(config, sections={"": RunSettings}, components={"credit": (), "trainer": ()}, checks=())
        from hydra.utils import instantiate

        credit = instantiate(config.credit)
        if config.trainer.action == "work":
            credit.work()
        action = globals().get(config.trainer.action)
        if action is not None:
            action(config)
        print("finished with seed", config.seed)


    if __name__ == "__main__":
        sys.exit(run(main, config_name="train"))
"""

PARTS = """
    from __future__ import annotations

    from dataclasses import dataclass


    @dataclass(frozen=True, kw_only=True)
    class Uniform:
        pass


    @dataclass(frozen=True, kw_only=True)
    class Faulty:
        def __post_init__(self):
            raise ValueError("credit=faulty can't be had")


    @dataclass(frozen=True, kw_only=True)
    class Buggy:
        def __post_init__(self):
            {}["key"]


    @dataclass(frozen=True, kw_only=True)
    class Numeric:
        def __post_init__(self):
            int("many")


    @dataclass(frozen=True, kw_only=True)
    class Worker:
        def work(self):
            raise ValueError("a bug after all")


    @dataclass(frozen=True, kw_only=True)
    class Trainer:
        max_steps: int = 3
        threads: int | None = None
        later: str | None = None
        action: str = "nothing"


    @dataclass(frozen=True, kw_only=True)
    class Pair:
        members: list
"""

FILES = {
    "program.py": PROGRAM,
    "parts.py": PARTS,
    "conf/train.yaml": """
        defaults: [{trainer: cpu}, {credit: ratio}, _self_, {experiment: null}]
        seed: 0
        stage: rl
        verbose: false
        """,
    "conf/trainer/cpu.yaml": "{_target_: parts.Trainer, max_steps: 3, threads: null, action: nothing, later: null}",
    "conf/trainer/short.yaml": "{_target_: parts.Trainer, action: nothing}",
    "conf/trainer/pair.yaml": "{_target_: parts.Pair, members: [{_target_: parts.Trainer}, {_target_: parts.Uniform}]}",
    "conf/credit/ratio.yaml": "{_target_: program.Ratio, anchor_ratio: 0.15}",
    "conf/credit/uniform.yaml": "{_target_: parts.Uniform}",
    "conf/credit/faulty.yaml": "{_target_: parts.Faulty}",
    "conf/credit/buggy.yaml": "{_target_: parts.Buggy}",
    "conf/credit/numeric.yaml": "{_target_: parts.Numeric}",
    "conf/credit/worker.yaml": "{_target_: parts.Worker}",
    "conf/credit/package.yaml": "{_target_: atrl.sections.TrainerSettings, max_steps: 0}",
    "conf/score.yaml": "defaults: [{model: small}, _self_]",
    "conf/model/small.yaml": "path: null",
    "conf/model/lora/none.yaml": "null",
    "experiments/fine.yaml": """
        # @package _global_
        seed: 5
        """,
    "experiments/wrong_group.yaml": """
        # @package _global_
        defaults: [{override /credit: rati}]
        """,
    "experiments/wrong_key.yaml": """
        # @package _global_
        trainer: {max_step: 5}
        """,
    "experiments/no_yaml.yaml": "a: b: c",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """A small program like train.py, with a conf folder of its own."""
    folder = tmp_path_factory.mktemp("program")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    (folder / "conf" / "experiment").symlink_to("../experiments")
    return folder


@pytest.fixture
def call(program, tmp_path):
    """Runs the program in an empty folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {key: value for key, value in os.environ.items() if key not in ("ATRL_DEBUG", "HYDRA_FULL_ERROR")}
        return subprocess.run(
            [sys.executable, str(program / "program.py"), *arguments],
            cwd=tmp_path,
            env={**inherited, "PYTHONPATH": str(ROOT / "src"), **environment},
            capture_output=True,
            text=True,
        )

    return run


MISTAKES = {
    "unknown key": (["trainer.max_step=3"], "no key 'trainer.max_step', did you mean 'trainer.max_steps'?"),
    "unknown key beside a component's class": (
        ["credit._target_=parts.Uniform", "trainer.max_step=3"],
        "no key 'trainer.max_step', did you mean 'trainer.max_steps'?",
    ),
    "unknown top-level key": (["sead=1"], "no key 'sead', did you mean 'seed'?"),
    "key without its node": (["anchor_ratio=0.3"], "no key 'anchor_ratio', did you mean 'credit.anchor_ratio'?"),
    "key of another option": (
        ["credit=uniform", "credit.anchor_ratio=0.3"],
        "no key 'credit.anchor_ratio' with credit=uniform: it belongs to credit=ratio",
    ),
    "option at its default": (
        ["trainer=short", "trainer.max_steps=4"],
        "no key 'trainer.max_steps': it is an option of parts.Trainer that this config leaves at its default: "
        "write +trainer.max_steps=…",
    ),
    "option at its default, in a list": (
        ["trainer=pair", "trainer.members.0.threads=4"],
        "no key 'trainer.members.0.threads': it is an option of parts.Trainer that this config leaves at its default: "
        "write +trainer.members.0.threads=…",
    ),
    "nothing there in a list": (
        ["trainer=pair", "trainer.members.2.threads=4"],
        "no key 'trainer.members.2.threads', did you mean 'trainer.members.0' or 'trainer.members.1'?",
    ),
    "beginning of a key": (["verb=true"], "no key 'verb', did you mean 'verbose'?"),
    "flag for a key": (["--seed", "3"], "no flag --seed: options are written key=value, as in seed=3"),
    "flag with its value": (["--max-steps=5"], "no flag --max-steps: options are written key=value, as in max_steps=5"),
    "flag without a value": (["--seed", "stage=rl"], "no flag --seed: options are written key=value, as in seed=VALUE"),
    "misspelt flag": (["--hlep"], "no flag --hlep, did you mean '--help'?"),
    "unlike anything": (
        ["quux=1"],
        "no key 'quux': --cfg job shows all there are; to add it, write +quux=VALUE",
    ),
    "unknown group": (["credt=ratio"], "no key 'credt', did you mean 'credit'?"),
    "unknown option": (
        ["credit=rati"],
        f"credit=rati: there is no such option of 'credit', did you mean 'ratio'? (there are {CREDIT})",
    ),
    "unknown experiment": (
        ["experiment=fin"],
        "experiment=fin: there is no such option of 'experiment', did you mean 'fine'? "
        "(there are fine, no_yaml, wrong_group, wrong_key)",
    ),
    "number for a group": (
        ["credit=3"],
        f"credit=3: there is no such option of 'credit' (there are {CREDIT})",
    ),
    "group of another program": (
        ["model=small"],
        "model=small: no 'model' is chosen here: it belongs to score.yaml",
    ),
    "checkpoint for a group": (
        ["model=Qwen/Qwen2.5-VL-3B-Instruct"],
        "model=Qwen/Qwen2.5-VL-3B-Instruct: there is no such option of 'model'; for a checkpoint or a model of the hub "
        "write model=pretrained model.path=Qwen/Qwen2.5-VL-3B-Instruct (there are small)",
    ),
    "unknown hydra key": (["hydra.run.dri=x"], "no key 'hydra.run.dri', did you mean 'hydra.run.dir'?"),
    "deletion of nothing": (["~sead"], "no key 'sead', did you mean 'seed'?"),
    "no override": (
        ["sead"],
        "the override 'sead' can't be read: write key=value, without spaces around the '='; "
        "a value with special characters needs quotes of its own, as in 'key=\"a: b\"'",
    ),
    "sweep without multirun": (
        ["seed=1,2"],
        "seed=1,2 is a sweep: add --multirun for a job a value, or write 'seed=[1,2]' for a list",
    ),
    "sweep over an unknown key": (["-m", "sead=1,2"], "no key 'sead', did you mean 'seed'?"),
    "sweep with an unknown option": (
        ["-m", "credit=uniform,rati"],
        f"credit=rati: there is no such option of 'credit', did you mean 'ratio'? (there are {CREDIT})",
    ),
    "experiment with an unknown option": (
        ["experiment=wrong_group"],
        f"a defaults list asks for credit=rati, which does not exist, did you mean 'ratio'? (there are {CREDIT})",
    ),
    "experiment with an unknown key": (
        ["experiment=wrong_key"],
        "trainer.max_step is not an option of parts.Trainer, did you mean 'max_steps'?",
    ),
    "unknown config": (
        ["--config-name=trian"],
        "Cannot find primary config 'trian'. Check that it's in your config search path.",
    ),
    "flags that exclude each other": (
        ["--multirun", "--cfg", "job"],
        "Only one of --run, --multirun, --cfg, --info and --shell_completion can be specified",
    ),
    "folder that can't be made": (["hydra.run.dir=/dev/null/x"], "Not a directory: /dev/null/x"),
    "value of the wrong type": (["trainer.max_steps=abc"], "trainer.max_steps must be an integer, got 'abc'"),
    "added key that nothing takes": (
        ["+credit.anchr_ratio=1"],
        "credit.anchr_ratio is not an option of program.Ratio, did you mean 'anchor_ratio'?",
    ),
    "value out of range": (["credit.anchor_ratio=1.5"], "credit.anchor_ratio must be in (0, 1], got 1.5"),
    "value that a component of the user's own refuses": (["credit=faulty"], "credit=faulty can't be had"),
    "value out of range, in the package": (
        ["credit=package"],
        "trainer.max_steps must be at least 1, got 0: each step takes one rollout batch",
    ),
    "file that is not there": (["trainer.action=no_such_file"], "No such file or directory: absent.jsonl"),
    "value left open": (
        ["trainer.later=???"],
        "trainer.later is not set: add trainer.later=VALUE to the command line",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(call, mistake):
    arguments, line = MISTAKES[mistake]
    done = call(*arguments)
    assert (done.stderr, done.returncode) == (f"error: {line}\n", 2)
    assert "finished" not in done.stdout


def test_several_mistakes_are_a_line_each(call):
    done = call("sead=1", "credit=rati", "trainer.max_step=1")
    assert [line.split(",")[0] for line in done.stderr.splitlines()] == [
        "error: credit=rati: there is no such option of 'credit'",
        "error: no key 'sead'",
        "error: no key 'trainer.max_step'",
    ]
    assert done.returncode == 2


def test_yaml_that_can_not_be_read_is_named(call):
    done = call("experiment=no_yaml")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: mapping values are not allowed here") and "no_yaml.yaml" in line
    assert done.returncode == 2


@pytest.mark.parametrize("action", ["interrupted", "interrupted_by_lightning"])
def test_ctrl_c_is_one_line_and_exit_code_130(call, action):
    done = call(f"trainer.action={action}")
    assert (done.stderr, done.returncode) == ("error: interrupted by Ctrl-C\n", 128 + signal.SIGINT)


@pytest.mark.parametrize(
    ("action", "line", "code"),
    [("told_to_end", "interrupted by SIGTERM", 143), ("alarmed", "step 3: too hot", 3)],
)
def test_of_processes_that_end_together_the_first_alone_says_why(call, action, line, code):
    """The others succeed: Lightning kills the first where one of those that it started fails."""
    done = call(f"trainer.action={action}")
    assert (done.stderr, done.returncode) == (f"error: {line}\n", code)
    other = call(f"trainer.action={action}", LOCAL_RANK="1")
    assert (other.stderr, other.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("arguments", "last_line"),
    [
        (["trainer.action=key_error"], "KeyError: 'key'"),
        (["trainer.action=library_error"], "json.decoder.JSONDecodeError: "),
        (["trainer.action=python_error"], "ValueError: invalid literal for int() with base 10: 'many'"),
        (["-m", "seed=1,2", "trainer.action=python_error"], "ValueError: invalid literal for int()"),
    ],
)
def test_a_bug_keeps_its_traceback(call, arguments, last_line):
    done = call(*arguments)
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(last_line)
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "culprit", "code", "words"),
    [
        (["credit=buggy"], "credit=buggy raised KeyError", '{}["key"]', "'key'"),
        (
            ["credit=numeric"],
            "credit=numeric raised ValueError",
            'int("many")',
            "invalid literal for int() with base 10: 'many'",
        ),
        (["credit=worker", "trainer.action=work"], "credit=worker raised ValueError", "a bug", "a bug after all"),
    ],
)
def test_a_bug_in_a_component_of_the_users_own_ends_in_a_line_that_names_it(
    call, program, tmp_path, arguments, culprit, code, words
):
    done = call(*arguments)
    lines = (program / "parts.py").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if code in text)
    place = f"{os.path.relpath(program / 'parts.py', tmp_path)}:{line}"
    assert "Traceback (most recent call last)" in done.stderr and done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {culprit} at {place}: {words}"


@pytest.mark.parametrize("variable", ["ATRL_DEBUG", "HYDRA_FULL_ERROR"])
def test_tracebacks_on_request(call, variable):
    composing = call("sead=1", **{variable: "1"})
    assert "ConfigCompositionException: Could not override 'sead'" in composing.stderr
    running = call("trainer.max_steps=abc", **{variable: "1"})
    assert "ValueError: trainer.max_steps must be an integer, got 'abc'" in running.stderr
    for done in (composing, running):
        assert "Traceback" in done.stderr and done.returncode == 1


def test_a_sweep_runs_on_after_a_failed_job_and_fails_at_the_end(call, tmp_path):
    done = call("-m", "seed=1,-1,2")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: job 1 (seed=-1): seed must be in [0, 4294967295], got -1"]
    assert "Traceback" not in done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("finished")] == [
        "finished with seed 1",
        "finished with seed 2",
    ]
    assert done.returncode == 2
    assert len(list(tmp_path.glob("multirun/*/*/*/.hydra"))) == 3


def test_a_sweep_without_mistakes_succeeds(call):
    done = call("--multirun", "credit=uniform,ratio")
    assert done.stdout.count("finished with seed 0") == 2
    assert done.returncode == 0


def test_a_run_succeeds_and_lands_where_it_should(call, tmp_path):
    done = call("experiment=fine", "hydra.run.dir=here")
    assert (done.stdout, done.stderr, done.returncode) == ("finished with seed 5\n", "", 0)
    assert (tmp_path / "here" / ".hydra" / "config.yaml").exists()


def test_hydras_own_flags_work(call, tmp_path):
    extra = tmp_path / "extra" / "experiment"
    extra.mkdir(parents=True)
    (extra / "mine.yaml").write_text("# @package _global_\nseed: 11\n")
    shown = call("--cfg", "job", "--config-dir", "extra", "experiment=mine")
    assert "seed: 11\n" in shown.stdout and "hydra" not in shown.stdout and shown.returncode == 0
    for arguments, meant in ((["experiment=mien"], "mine"), (["experiment=mine", "sead=1"], "seed")):
        misspelt = call("--config-dir", "extra", *arguments)
        assert f"did you mean '{meant}'?" in misspelt.stderr and misspelt.returncode == 2
    helped = call("--help")
    assert "Configuration groups" in helped.stdout and helped.returncode == 0
    completed = call("-sc", "query=bash", COMP_LINE="python program.py credit=u", COMP_POINT="26")
    assert completed.stdout.split() == ["credit=uniform"] and completed.returncode == 0


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("a=1 --config-dir mine b=2", "a=1 b=2 --config-dir mine"),
        ("a=1 --config-dir=mine b=2 -m ~c", "a=1 b=2 ~c --config-dir=mine -m"),
        ("a=1 -cd mine +b=2 -c job -p a.b c=3", "a=1 +b=2 c=3 -cd mine -c job -p a.b"),
        ("a=1 -m a=1 b=2 --info", "a=1 a=1 b=2 -m --info"),
        ("a=1 -i defaults b=2", "a=1 b=2 -i defaults"),
        ("-m a=1 --config-dir=mine b=2", "a=1 b=2 -m --config-dir=mine"),
        *((text, text) for text in ("--config-dir mine a=1", "a=1 -m", "-m a=1 b=2 --info", "a=1 -x b=2", "")),
    ],
)
def test_flags_between_overrides_go_behind_them(typed, read):
    assert overrides_first(typed.split()) == read.split()


def test_a_flag_between_overrides_does_what_it_does_before_them(call, tmp_path):
    extra = tmp_path / "extra" / "experiment"
    extra.mkdir(parents=True)
    (extra / "mine.yaml").write_text("# @package _global_\nseed: 11\n")
    done = call("credit=uniform", "--config-dir", "extra", "experiment=mine")
    assert (done.stdout, done.stderr, done.returncode) == ("finished with seed 11\n", "", 0)
    swept = call("credit=uniform", "-m", "seed=1,2")
    assert swept.stdout.count("finished with seed") == 2 and swept.returncode == 0
    misspelt = call("credit=uniform", "--config-dir=extra", "sead=1", "experiment=mine")
    assert (misspelt.stderr, misspelt.returncode) == ("error: no key 'sead', did you mean 'seed'?\n", 2)


@pytest.mark.parametrize("place", ["extra", "extra/conf"])
def test_a_module_beside_the_configs_of_config_dir_is_put_on_the_path(call, tmp_path, place):
    """In its folder, and in the one above it."""
    config = tmp_path / "extra" / "conf" / "credit" / "mine.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("_target_: off_path.Mine\n")
    (tmp_path / place / "off_path.py").write_text("class Mine: pass\n")
    arguments = ("--config-dir", "extra/conf", "credit=mine")
    forgotten = call(*arguments)
    assert (forgotten.returncode, forgotten.stderr) == (
        2,
        "error: credit._target_: there is no module 'off_path', put its folder on PYTHONPATH: "
        f"export PYTHONPATH={tmp_path / place}:$PYTHONPATH\n",
    )
    paths = os.pathsep.join([str(tmp_path / place), str(ROOT / "src")])
    assert call(*arguments, PYTHONPATH=paths).returncode == 0


def test_the_task_sees_the_environment_that_the_user_set_and_quiet_libraries(call):
    quiet = call("trainer.action=show_environment", TRANSFORMERS_VERBOSITY="info")
    assert quiet.stdout.splitlines()[:4] == [
        "HYDRA_FULL_ERROR None",
        "VLLM_LOGGING_LEVEL ERROR",
        "TOKENIZERS_PARALLELISM false",
        "TRANSFORMERS_VERBOSITY info",
    ]
    verbose = call("trainer.action=show_environment", "verbose=true", TOKENIZERS_PARALLELISM="true")
    assert verbose.stdout.splitlines()[:4] == [
        "HYDRA_FULL_ERROR None",
        "VLLM_LOGGING_LEVEL None",
        "TOKENIZERS_PARALLELISM true",
        "TRANSFORMERS_VERBOSITY None",
    ]


def test_the_console_shows_our_log_and_the_libraries_only_on_request(call):
    quiet = call("trainer.action=log")
    assert "atrl.something says hello" in quiet.stdout and "lightning.pytorch says hello" not in quiet.stdout
    assert "lightning.pytorch says hello" in call("trainer.action=log", "verbose=true").stdout


def test_composing_imports_nothing_heavy():
    heavy = ["datasets", "lightning", "matplotlib", "torch", "transformers", "vllm", "wandb"]
    script = f"""
        import runpy, sys
        sys.argv = ["train.py", "--cfg", "job"]
        try:
            runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, stop.code
        print("imported:", *[name for name in {heavy} if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "imported:"
    assert "max_steps:" in done.stdout


def task(config) -> None:
    """A task that launchers can send to another process."""


def test_jobs_can_be_sent_to_other_processes():
    job = pickle.loads(pickle.dumps(_Job(task, debugging=False)))
    assert job.task is task and job.__wrapped__ is task


def test_an_error_that_was_never_raised_is_nobodys():
    assert user_message(ValueError("no traceback"), Path(__file__)) is None


def test_did_you_mean_names_the_nearest_or_all():
    assert did_you_mean("atlr", ["atrl", "uniform"]) == ", did you mean 'atrl'?"
    assert did_you_mean("xyz", ["atrl", "uniform"]) == ""
    assert did_you_mean("gppo", ["dapo", "grpo", "gspo", "grpo"]) == ", did you mean 'grpo' or 'gspo'?"
    assert did_you_mean("DAPO", ["dapo", "grpo"]) == ", did you mean 'dapo'?"
    assert did_you_mean_or_all("atlr", ["atrl", "uniform"]) == ", did you mean 'atrl'?"
    assert did_you_mean_or_all("xyz", ["uniform", "atrl"]) == ": there are atrl, uniform"
    assert did_you_mean_or_all("xyz", []) == ": there are none"


def test_nearest_keys_look_into_every_node():
    keys = ["seed", "trainer", "trainer.max_steps", "sft.max_steps", "data.seed"]
    assert nearest_keys("trainer.max_step", keys) == ["trainer.max_steps"]
    assert nearest_keys("max_steps", keys) == ["trainer.max_steps", "sft.max_steps"]
    assert nearest_keys("sead", keys) == ["seed"]
    assert nearest_keys("quux", keys) == []
    assert nearest_keys("tra", keys) == ["trainer"] and nearest_keys("tr", keys) == []
    assert nearest_keys("quux", []) == []
