"""What `check_config` finds wrong, and what it lets through; and every file of the real conf folder."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from atrl.annotations import describe, fits
from atrl.config import (
    COMPONENTS,
    ROOTS,
    SECTIONS,
    check_config,
    group_holds_a_comparison,
    read_section,
)
from atrl.process_checks import check_processes, processes_have_work, sharded_ranks_work_alike
from atrl.sections import OptimizerSettings, RunSettings, SftSettings, TrainerSettings
from tests.unit.refusals import refusal

if TYPE_CHECKING:
    from nowhere_to_be_found import Tensor

ROOT = Path(__file__).parents[2]
HERE = __name__  # the module that `_target_` finds the components below in


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Edges:
    kind: Literal["attention", "similarity"] = "attention"


@dataclass(frozen=True, kw_only=True)
class Scheme:
    num_clusters: int
    anchor_ratio: float = 0.15
    reduction: Literal["peak", "mean"] = "peak"
    hard: bool = False
    seed: int | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    folder: Path | None = None
    colour: Colour = Colour.RED
    tags: list[str] | None = None
    scales: dict[str, float] | None = None
    edges: Edges | None = None
    more: list[Edges] | None = None
    named: dict[str, Edges] | None = None
    device: int | Literal["auto"] = "auto"
    tensor: Tensor | None = None
    anything: Any = None


class Plain:
    def __init__(self, *, size: int = 1, tensor: Tensor[Literal["x"], 3] | None = None) -> None: ...


class Unfinished(ABC):
    @abstractmethod
    def begin(self) -> None: ...

    @abstractmethod
    def end(self) -> None: ...


class Whole(Unfinished):
    def begin(self) -> None: ...

    def end(self) -> None: ...


def open_ended(*, size: int = 1, **others: Any) -> None: ...


NUMBER = 3


@pytest.fixture
def problems():
    """The lines of `check_config` for a config with one component, the group ``credit``."""

    def find(node: Any, **root: Any) -> list[str]:
        try:
            check_config({"credit": node, **root}, sections={"": RunSettings}, components={"credit": ()}, checks=())
        except ValueError as error:
            return str(error).splitlines()
        return []

    return find


def scheme(**arguments: Any) -> dict[str, Any]:
    return {"_target_": f"{HERE}.Scheme", "num_clusters": 8, **arguments}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"anchor_ratio": 1},
        {"anchor_ratio": 1e30},
        {"seed": None},
        {"betas": [0.9, 1]},
        {"folder": "a/b"},
        {"colour": "blue"},
        {"tags": ["a", "b"]},
        {"scales": {"x": 1, "y": 0.5}},
        {"device": 2},
        {"device": "auto"},
        {"edges": {"_target_": f"{HERE}.Edges", "kind": "similarity"}},
        {"more": [{"_target_": f"{HERE}.Edges"}]},
        {"named": {"first": {"_target_": f"{HERE}.Edges"}}},
        {"tensor": 5, "anything": {"a": [1, None]}},
        {"_convert_": "all", "_recursive_": True},
    ],
)
def test_accepts_what_the_constructor_takes(problems, arguments):
    assert problems(scheme(**arguments)) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"num_clusters": "abc"}, "credit.num_clusters must be an integer, got 'abc'"),
        ({"num_clusters": True}, "credit.num_clusters must be an integer, got true"),
        ({"num_clusters": "8"}, "credit.num_clusters must be an integer, got '8'"),
        ({"num_clusters": 8.0}, "credit.num_clusters must be an integer, got 8.0"),
        ({"num_clusters": None}, "credit.num_clusters must be an integer, got null"),
        ({"anchor_ratio": True}, "credit.anchor_ratio must be a number, got true"),
        ({"anchor_ratio": "0.3"}, "credit.anchor_ratio must be a number, got '0.3'"),
        ({"hard": 1}, "credit.hard must be true or false, got 1"),
        ({"seed": 1.5}, "credit.seed must be an integer or null, got 1.5"),
        ({"folder": 3}, "credit.folder must be a path or null, got 3"),
        ({"tags": "a"}, "credit.tags must be a list, each item text or null, got 'a'"),
        ({"tags": [1]}, "credit.tags must be a list, each item text or null, got [1]"),
        (
            {"scales": {"x": "y"}},
            "credit.scales must be a mapping, each value a number or null, got {'x': 'y'}",
        ),
        ({"betas": [0.9]}, "credit.betas must be a list of 2 (a number, a number), got [0.9]"),
        (
            {"reduction": "peek"},
            "credit.reduction must be one of 'peak', 'mean', got 'peek', did you mean 'peak'?",
        ),
        ({"reduction": 3}, "credit.reduction must be one of 'peak', 'mean', got 3"),
        ({"colour": "blu"}, "credit.colour must be one of 'red', 'blue', got 'blu', did you mean 'blue'?"),
        ({"device": "aut"}, "credit.device must be an integer or 'auto', got 'aut', did you mean 'auto'?"),
        (
            {"edges": "similarity"},
            "credit.edges must be a component (Edges: a node with a _target_) or null, got 'similarity'",
        ),
        ({"anchr_ratio": 0.3}, "credit.anchr_ratio is not an option of test_config.Scheme, did you mean"),
    ],
)
def test_names_the_key_the_value_and_what_it_should_be(problems, arguments, line):
    (found,) = problems(scheme(**arguments))
    assert found.startswith(line)
    assert found == line or line.endswith("did you mean")


def test_unknown_keys_name_the_nearest_option_or_all_of_them(problems):
    assert problems({"_target_": f"{HERE}.Edges", "knd": "attention"}) == [
        f"credit.knd is not an option of {HERE}.Edges, did you mean 'kind'?"
    ]
    assert problems({"_target_": f"{HERE}.Edges", "zzz": 1}) == [
        f"credit.zzz is not an option of {HERE}.Edges: there are kind"
    ]


def test_nested_components_are_checked_wherever_they_are(problems):
    wrong = {"_target_": f"{HERE}.Edges", "kind": "similar"}
    found = problems(scheme(edges=wrong, more=[wrong], named={"a": wrong}, anything={"deep": [wrong]}))
    assert [line.partition(" ")[0] for line in found] == [
        "credit.edges.kind",
        "credit.more.0.kind",
        "credit.named.a.kind",
        "credit.anything.deep.0.kind",
    ]


def test_lists_and_named_sets_of_components_make_a_group(problems):
    wrong = {"_target_": f"{HERE}.Edges", "kind": 1}
    assert [line.partition(" ")[0] for line in problems({"a": wrong, "b": None})] == ["credit.a.kind"]
    assert [line.partition(" ")[0] for line in problems([wrong])] == ["credit.0.kind"]
    assert problems(None) == []
    assert problems({"a": 3}) == ["credit.a is 3, which nothing reads: a component is a node with a _target_, or null"]


def test_missing_values_are_named_with_how_to_set_them(problems):
    assert problems(scheme(num_clusters="???", betas=[0.9, "???"])) == [
        "credit.num_clusters is not set: add credit.num_clusters=VALUE to the command line",
        "credit.betas.1 is not set: add credit.betas.1=VALUE to the command line",
    ]
    required = {"_target_": f"{HERE}.Scheme"}
    assert problems(required) == [
        "credit.num_clusters is missing and has no default: add +credit.num_clusters=VALUE, or it to the YAML"
    ]
    assert problems({**required, "_partial_": True}) == []


def test_references_are_followed_and_broken_ones_reported(problems):
    assert problems(scheme(seed="${seed}"), seed=3) == []
    assert problems(scheme(seed="${stage}"), stage="rl") == ["credit.seed must be an integer or null, got 'rl'"]
    assert problems(scheme(seed="${credit.num_clusters}", num_clusters="???")) == [
        "credit.num_clusters is not set: add credit.num_clusters=VALUE to the command line"
    ]
    (line,) = problems(scheme(seed="${sede}"), seed=3)
    assert line.startswith("credit.seed can't be resolved: ") and "'sede' not found" in line


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (f"{HERE}.Sheme", f"there is no 'Sheme' in {HERE}, did you mean 'Scheme'?"),
        ("atrl.confg.RunSettings", "there is no 'confg' in atrl, did you mean 'config'?"),
        (
            "artl.config.RunSettings",
            "there is no module 'artl' in installed packages or on PYTHONPATH, did you mean 'atrl'?",
        ),
        (f"{HERE}.NUMBER", f"{HERE}.NUMBER is a int, not a class or function"),
        ("not a name", "'not a name' is no dotted name of a class or function"),
        (3, "3 is no dotted name of a class or function"),
    ],
)
def test_targets_that_do_not_exist(problems, target, line):
    assert problems({"_target_": target}) == [f"credit._target_: {line}"]


def test_a_class_that_lacks_a_method_which_its_base_leaves_open_can_not_be_made(problems):
    assert problems({"_target_": f"{HERE}.Unfinished"}) == [
        f"credit._target_: {HERE}.Unfinished can't be made: it has no begin and no end"
    ]
    assert problems({"_target_": f"{HERE}.Whole"}) == []


def test_no_module_of_pythons_own_and_none_that_is_private_is_suggested(problems, tmp_path, monkeypatch):
    for name in ("_surprise_parts", "surprise_parts"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    line = "credit._target_: there is no module {!r} in installed packages or on PYTHONPATH"
    assert problems({"_target_": "webbrowsr.X"}) == [line.format("webbrowsr")]
    assert problems({"_target_": "_surprise_part.X"}) == [
        line.format("_surprise_part") + ", did you mean 'surprise_parts'?"
    ]


@pytest.mark.parametrize("file", ["off_path.py", "off_path/scheme.py"])
def test_a_module_in_the_current_folder_is_put_on_the_path(problems, tmp_path, monkeypatch, file):
    folder = tmp_path / "with space"
    (folder / file).parent.mkdir(parents=True)
    (folder / file).touch()
    monkeypatch.chdir(folder)
    assert problems({"_target_": "off_path.scheme.X"}) == [
        "credit._target_: there is no module 'off_path', put its folder on PYTHONPATH: "
        f"export PYTHONPATH='{folder}':$PYTHONPATH"
    ]


def test_targets_whose_module_can_not_be_imported(problems, tmp_path, monkeypatch):
    (tmp_path / "needy_parts.py").write_text("import surely_absent\n")
    (tmp_path / "broken_parts.py").write_text("from os import surely_absent\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert problems({"_target_": "needy_parts.Thing"}) == [
        "credit._target_: needy_parts needs the package 'surely_absent', which is not installed"
    ]
    (line,) = problems({"_target_": "broken_parts.Thing"})
    assert line.startswith("credit._target_: broken_parts can't be imported: cannot import name 'surely_absent'")


def test_names_for_type_checkers_only_do_not_hide_the_other_parameters(problems):
    assert problems({"_target_": f"{HERE}.Plain", "tensor": "anything goes"}) == []
    assert problems({"_target_": f"{HERE}.Plain", "size": "x", "tensor": 3}) == [
        "credit.size must be an integer, got 'x'"
    ]


def test_inherited_annotations_are_read_in_the_module_that_wrote_them(problems, tmp_path, monkeypatch):
    header = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    (tmp_path / "base_parts.py").write_text(
        header
        + "from typing import Literal\nKind = Literal['one', 'two']\n"
        + "@dataclass(frozen=True, kw_only=True)\nclass Base:\n    kind: Kind = 'one'\n"
    )
    (tmp_path / "derived_parts.py").write_text(
        header
        + "from base_parts import Base\n"
        + "@dataclass(frozen=True, kw_only=True)\nclass Derived(Base):\n    size: int = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert problems({"_target_": "derived_parts.Derived", "kind": "three", "size": "x"}) == [
        "credit.kind must be one of 'one', 'two', got 'three'",
        "credit.size must be an integer, got 'x'",
    ]


def test_functions_with_open_keywords_take_any_key_but_check_their_own(problems):
    assert problems({"_target_": f"{HERE}.open_ended", "size": "x", "other": 1}) == [
        "credit.size must be an integer, got 'x'"
    ]


def test_all_problems_are_reported_together_before_ranges_and_cross_checks():
    asked = []
    with pytest.raises(ValueError) as caught:
        check_config(
            {"sead": 1, "stage": "slf", "seed": -1, "trainer": {"max_step": 3}, "credit": scheme(seed="x")},
            sections={"": RunSettings, "trainer": TrainerSettings},
            components={"credit": ()},
            checks=(lambda config: asked.append(config),),
        )
    assert set(str(caught.value).splitlines()) == {
        "sead is read by nothing, did you mean 'seed'?",
        "stage must be one of 'rl', 'sft', 'sft_rl', got 'slf', did you mean 'sft'?",
        "trainer.max_step is not an option of the section 'trainer', did you mean 'max_steps'?",
        "credit.seed must be an integer or null, got 'x'",
    }
    assert asked == []


def test_sections_must_be_there_and_their_ranges_hold():
    sections = {"": RunSettings, "trainer": TrainerSettings}

    def line(config: dict[str, Any]) -> str:
        with pytest.raises(ValueError) as caught:
            check_config(config, sections=sections, components={}, checks=())
        return str(caught.value)

    assert line({}) == "trainer is missing: add '- trainer: OPTION' to the defaults list of the config"
    assert line({"trainer": 3}) == "trainer must be a mapping, got 3"
    assert line({"trainer": {}, "seed": -1}) == "seed must be in [0, 4294967295], got -1"
    assert line({"trainer": {"max_steps": 0}}) == (
        "trainer.max_steps must be at least 1, got 0: each step takes one rollout batch"
    )


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_numbers_are_finite(number):
    """Almost every check of a range lets NaN through."""
    node = scheme(temperature=float(number)) | {"inner": [1.0, float(number)]}
    config = {"optimizer": {"learning_rate": float(number)}, "credit": node}
    sections = {"": RunSettings, "optimizer": OptimizerSettings}
    with pytest.raises(ValueError) as caught:
        check_config(config, sections=sections, components={"credit": ()}, checks=())
    for key in ("optimizer.learning_rate", "credit.temperature", "credit.inner.1"):
        assert f"{key} must be a finite number, got {number}" in str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("learning_rate", 0.0, "sft.learning_rate must be above 0, got 0.0: try 1.5e-3"),
        ("weight_decay", -1.0, "sft.weight_decay must be 0 (off) or more, got -1.0"),
    ],
)
def test_the_warm_up_has_rates_that_adamw_takes(option, value, message):
    assert refusal(SftSettings, **{option: value}) == message


def test_cross_checks_run_last_and_all_of_them():
    checks = (lambda config: None, lambda config: f"{config.seed} is odd", lambda config: "always")
    with pytest.raises(ValueError, match=r"^3 is odd\nalways$"):
        check_config({"seed": 3}, sections={"": RunSettings}, components={}, checks=checks)


def test_a_group_needs_two_responses():
    assert group_holds_a_comparison(OmegaConf.create({"rollout": {"group_size": 2}})) is None
    assert group_holds_a_comparison(OmegaConf.create({"rollout": None})) is None
    message = group_holds_a_comparison(OmegaConf.create({"rollout": {"group_size": 1}}))
    assert message.startswith("rollout.group_size must be at least 2, got 1")


def test_every_process_takes_prompts():
    def check(devices, nodes=1, prompts=4, batch=32, stage="sft_rl"):
        sizes = {"rollout": {"prompts_per_step": prompts}, "sft": {"batch_size": batch}, "stage": stage}
        return processes_have_work(OmegaConf.create({"trainer": {"devices": devices, "num_nodes": nodes}} | sizes))

    assert check(4) is None and check("auto") is None and check(2, nodes=2) is None
    assert check(5).startswith("rollout.prompts_per_step must be at least 5, got 4")
    assert check(2, nodes=4).startswith("rollout.prompts_per_step must be at least 8, got 4")
    assert check(4, batch=3).startswith("sft.batch_size must be at least 4, got 3")
    assert check(4, batch=3, stage="rl") is None and check(5, stage="sft") is None  # a stage that the run has not


def test_ranks_that_divide_a_model_get_equal_shares_and_an_undivided_reference():
    def check(prompts=4, devices=2, strategy="fsdp", stage="rl", kl=0.0):
        trainer = {"devices": devices, "num_nodes": 1, "strategy": strategy}
        rest = {"rollout": {"prompts_per_step": prompts}, "stage": stage, "algorithm": {"kl_coefficient": kl}}
        return sharded_ranks_work_alike(OmegaConf.create({"trainer": trainer} | rest))

    assert check() is None and check(5, devices="auto") is None and check(5, strategy="ddp") is None
    assert check(5).startswith("rollout.prompts_per_step must be a multiple of 2, the processes that divide")
    assert check(stage="sft_rl") is None and check(kl=0.1) is None
    assert check(stage="sft_rl", kl=0.1, strategy="ddp") is None
    assert check(stage="sft_rl", kl=0.1).endswith("stage=rl with model.path set to the model that it leaves")


def test_processes_that_the_machine_counts_are_checked_too():
    """devices=auto: the config says nothing, five GPUs do."""
    trainer = {"devices": "auto", "num_nodes": 1, "strategy": "fsdp"}
    config = OmegaConf.create({"trainer": trainer, "rollout": {"prompts_per_step": 4}, "stage": "rl"})
    assert processes_have_work(config) is None and sharded_ranks_work_alike(config) is None
    check_processes(config, 2)
    with pytest.raises(ValueError, match=r"^rollout\.prompts_per_step must be a multiple of 3, the .*, got 4$"):
        check_processes(config, 3)
    with pytest.raises(ValueError, match=r"^rollout\.prompts_per_step must be at least 5, .*\n.* a multiple of 5"):
        check_processes(config, 5)


def test_read_section_takes_its_own_fields_and_resolves_them():
    config = OmegaConf.create(
        {"seed": 7, "credit": {"_target_": "x"}, "optimizer": {"betas": [0.5, "${other}"]}, "other": 0.25}
    )
    assert read_section(config, RunSettings) == RunSettings(seed=7)
    assert read_section(config.optimizer, OptimizerSettings) == OptimizerSettings(betas=[0.5, 0.25])


@pytest.mark.parametrize(
    ("annotation", "words", "good", "bad"),
    [
        (int, "an integer", [0, -3, 10**20], [1.0, "1", True, None, []]),
        (float, "a number", [1, 0.5, float("nan")], ["1", False, None]),
        (bool, "true or false", [True, False], [1, 0, "true", None]),
        (str, "text", ["", "a"], [1, None, True]),
        (str | None, "text or null", ["a", None], [1]),
        (set[int], "a list, each item an integer", [[1, 2]], [1, [1.5], {}]),
        (list, "a list", [[], ["a", 1]], [1, {}]),
        (dict[str, Any], "a mapping, each value anything", [{"a": None}], [[1], 3]),
        (tuple[int, ...], "a list, each item an integer", [[], [1, 2, 3]], [["a"], 1]),
        (Literal["a"], "'a'", ["a"], ["b", 1, None]),
        (Edges, "a component (Edges: a node with a _target_)", [{"_target_": "x"}], [{}, 1, "x", None]),
        (object, "anything", [1, None, "x"], []),
    ],
)
def test_annotations_in_words_and_what_fits_them(annotation, words, good, bad):
    assert describe(annotation) == words
    assert [value for value in good if not fits(value, annotation)] == []
    assert [value for value in bad if fits(value, annotation)] == []


# The real conf folder.

CONF = ROOT / "conf"
ROOT_CONFIGS = sorted(path.stem for path in CONF.glob("*.yaml"))


def group_options() -> list[tuple[str, str]]:
    """(group, option) for each YAML file of conf's folders, experiments included; Hydra's own groups excepted."""
    found = []
    for folder, folders, files in os.walk(CONF, followlinks=True):
        folders.sort()
        group = Path(folder).relative_to(CONF).as_posix()
        if group != "." and group.partition("/")[0] != "hydra":
            found += [(group, Path(file).stem) for file in sorted(files) if file.endswith(".yaml")]
    return found


def choice(group: str, option: str) -> str:
    """The override that chooses a file: those in subfolders that are no groups are options of the outermost one."""
    if any(group in groups_of(root) for root in ROOT_CONFIGS):
        return f"{group}={option}"
    outer, _, inner = group.partition("/")
    return f"{outer}={inner}/{option}" if inner else f"{outer}={option}"


NEEDS = {
    ("scale", "full_32b_32x80"): ["rollout.prompts_per_step=32"],
    ("algorithm", "gspo"): ["credit=none"],
}
"""Options that the check lets through only with others."""


def composed(root: str, overrides: list[str], folder: Path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(root, overrides, return_hydra_config=True)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.runtime.output_dir = str(folder)
    config.hydra.job.num = 0
    HydraConfig.instance().set_config(config)
    return config


def wrong(root: str, config: Any) -> list[str]:
    """What the check says of a config, besides the values that its YAML leaves to the user."""
    assert root in ROOTS, f"name the sections of conf/{root}.yaml in atrl.config.ROOTS"
    try:
        check_config(config, sections=ROOTS[root])
    except ValueError as error:
        return [line for line in str(error).splitlines() if " is not set: add " not in line]
    return []


def groups_of(root: str) -> list[str]:
    defaults = yaml.safe_load((CONF / f"{root}.yaml").read_text())["defaults"]
    return [group for entry in defaults if isinstance(entry, dict) for group in entry]


@pytest.mark.parametrize(("group", "option"), group_options())
def test_every_option_of_the_real_conf_passes_the_check(group, option, tmp_path):
    # With the training config where it has the group: not every option makes sense in the others.
    roots = [root for root in ("train", *ROOT_CONFIGS) if group.partition("/")[0] in groups_of(root)]
    assert roots, f"no config in conf/ has the group {group} in its defaults list"
    assert wrong(roots[0], composed(roots[0], [choice(group, option), *NEEDS.get((group, option), [])], tmp_path)) == []


@pytest.mark.parametrize("root", ROOT_CONFIGS)
def test_root_configs_pass_the_check_as_they_are(root, tmp_path):
    assert wrong(root, composed(root, [], tmp_path)) == []


@pytest.mark.parametrize(("name", "settings"), SECTIONS.items())
def test_the_yaml_of_a_section_states_the_defaults_of_its_class(name, settings, tmp_path):
    config = composed("train", ["trainer.accelerator=auto"], tmp_path)  # what trainer/cpu.yaml is there to change
    stated, defaults = config[name] if name else config, OmegaConf.create(asdict(settings()))
    assert {key: stated[key] for key in defaults} == defaults


@pytest.mark.parametrize("root", ROOT_CONFIGS)
def test_no_group_is_optional(root):
    # Hydra passes over an unknown option of an optional group without a word.
    assert [group for group in groups_of(root) if "optional" in group] == []


@pytest.mark.parametrize("root", ROOT_CONFIGS)
def test_every_group_is_described(root):
    outer = {group.partition("/")[0] for group in groups_of(root)}
    assert outer - {"experiment", "mode", "scale"} - set(COMPONENTS) - set(ROOTS[root]) == set()


def test_prompts_are_run_once_where_that_spares_something() -> None:
    def once(group_size: int = 8, *, whole_rows: bool = False, **settings) -> bool:
        return OptimizerSettings(**settings).runs_prompts_once(group_size, whole_rows=whole_rows)

    assert once() and once(micro_batch_size=2) and once(micro_batch_size=1, micro_batch_tokens=500)
    assert not (once(share_prompts=False) or once(1) or once(whole_rows=True) or once(micro_batch_size=1))
