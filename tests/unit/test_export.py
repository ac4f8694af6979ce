"""From checkpoints of one and of two ranks to a folder in Hugging Face form, and what is refused on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors import safe_open
from safetensors.torch import load_file

from atrl.checkpoint import read_checkpoint, write_checkpoint
from atrl.config import check_config
from atrl.export.command import check_place, export
from atrl.export.settings import ExportSettings
from atrl.export.source import find_source, gather, skeleton
from atrl.export.write import write_model
from atrl.models.asked import NOTE, trained_instruction
from atrl.resume import weights_fingerprint
from atrl.weight_sync import whole_state
from tests.unit.hub import running_hub
from tests.unit.live_bytes import LiveBytes
from tests.unit.ranks import run_ranks

ROOT = Path(__file__).parents[2]
FORM = {"config.json", "generation_config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja"}
TEXT = "Where is point A?"


def policy_of(folder: Path):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa").eval()


def run_export(*overrides: str, **settings: object) -> Path:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return export(compose("export", [f"{key}='{value}'" for key, value in settings.items()] + list(overrides)))


def trained(policy, checkpoint: Path, run: Path) -> Path:
    """One AdamW step on all ranks, then a checkpoint as a run that started from `checkpoint` writes it."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    sum(parameter.sum() for parameter in policy.parameters()).backward()  # every parameter moves
    optimizer.step()
    state = {"step": 7, "config": {"model": {"path": str(checkpoint), "instruction": "Box it."}}}
    return write_checkpoint(run / "checkpoints", state, policy, optimizer)


def trained_by_ranks(checkpoint: Path, run: Path) -> dict[str, torch.Tensor]:
    from torch.distributed.device_mesh import init_device_mesh

    from atrl.sharding import Sharding, shard

    policy = policy_of(checkpoint)
    shard(policy, init_device_mesh("cpu", (torch.distributed.get_world_size(),)), Sharding())
    trained(policy, checkpoint, run)
    return whole_state(policy)


@pytest.fixture(scope="module")
def divided(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The folder of a run of two FSDP ranks, and the weights that they ended with."""
    run = tmp_path_factory.mktemp("divided")
    return run, run_ranks(trained_by_ranks, checkpoint, run, seconds=300)[0]


@torch.no_grad()
def logits_of(policy, processor) -> torch.Tensor:
    """Of a prompt with a picture."""
    from PIL import Image

    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": TEXT}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    picture = Image.linear_gradient("L").resize((112, 56)).convert("RGB")
    return policy(**processor(text=[text], images=[picture], return_tensors="pt")).logits


def test_the_exported_policy_is_the_trained_one_to_the_bit(policy, processor, checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    before = logits_of(policy, processor)
    trained(policy, checkpoint, tmp_path / "run")
    folder = run_export(checkpoint=tmp_path / "run", path=tmp_path / "out" / "model")
    assert folder == tmp_path / "out" / "model"
    assert {entry.name for entry in folder.iterdir()} == {*FORM, NOTE, "model.safetensors", "tokenizer_config.json"}
    loaded, its_processor = policy_of(folder), AutoProcessor.from_pretrained(folder)
    logits = logits_of(loaded, its_processor)
    assert torch.equal(logits, logits_of(policy, processor)) and not torch.equal(logits, before)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert loaded.generation_config.eos_token_id == policy.generation_config.eos_token_id


def test_what_a_run_leaves_and_what_is_exported_are_the_same_files(policy, processor, checkpoint, tmp_path) -> None:
    trained(policy, checkpoint, tmp_path / "run")
    write_model(policy, processor, whole_state(policy), tmp_path / "left", instruction="Box it.")
    exported = run_export(checkpoint=tmp_path / "run" / "checkpoints" / "last", path=tmp_path / "out")
    for file in (tmp_path / "left").iterdir():
        assert file.read_bytes() == (exported / file.name).read_bytes(), file.name
    assert trained_instruction(str(exported)) == "Box it."


def test_a_policy_divided_among_two_ranks(divided, checkpoint: Path, tmp_path: Path) -> None:
    run, weights = divided
    folder = run_export(checkpoint=run, path=tmp_path / "out")
    loaded, start = policy_of(folder).state_dict(), policy_of(checkpoint).state_dict()
    assert weights.keys() <= loaded.keys() and loaded.keys() - weights.keys() == {"lm_head.weight"}
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    assert not any(torch.equal(start[name], value) for name, value in weights.items())


def test_large_models_go_to_several_files(divided, tmp_path: Path) -> None:
    run, weights = divided
    folder = run_export(checkpoint=run, path=tmp_path / "out", max_shard_size="1MB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) >= 4 and all((folder / file).stat().st_size < 1.1e6 for file in files)
    loaded = policy_of(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_weights_are_cast_where_that_is_asked_for(divided, tmp_path: Path) -> None:
    run, weights = divided
    folder = run_export(checkpoint=run, path=tmp_path / "half", dtype="bfloat16")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = policy_of(folder)
    assert loaded.dtype == torch.bfloat16
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value.bfloat16()) for name, value in weights.items())
    again = run_export(checkpoint=folder, path=tmp_path / "kept")
    assert load_file(again / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()
    with safe_open(again / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118  no mapping
    wide = run_export(checkpoint=folder, path=tmp_path / "wide", dtype="float32")
    assert json.loads((wide / "config.json").read_text())["dtype"] == "float32"


def test_no_more_than_one_copy_is_in_memory(divided, checkpoint: Path) -> None:
    """While the ranks' parts are put together, one tensor at a time is there twice."""
    run, weights = divided
    found = read_checkpoint(run / "checkpoints" / "last")
    model = skeleton(str(checkpoint), trust_remote_code=False)
    assert all(parameter.is_meta for parameter in model.parameters())
    with LiveBytes() as live:
        state = gather(found, model, lambda tensor: tensor)
    whole = sum(tensor.nbytes for tensor in weights.values())
    largest = max(tensor.nbytes for tensor in weights.values())
    assert sum(tensor.nbytes for tensor in state.values()) == whole
    assert whole <= live.peak <= whole + 2 * largest


# What is found.


@pytest.fixture
def run(policy, checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    trained(policy, checkpoint, folder)
    return folder


def test_a_checkpoint_is_found_by_all_its_names(run: Path, checkpoint: Path) -> None:
    for name in (run, run / "checkpoints", run / "checkpoints" / "last", run / "checkpoints" / "step_000007"):
        source = find_source(str(name))
        assert source.checkpoint.step == 7 and source.form == str(checkpoint), name


def test_a_run_without_checkpoints_has_its_model(run: Path, checkpoint: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(checkpoint, run / "model")
    for name in (run, run / "model"):
        assert find_source(str(name)).checkpoint is None
        assert find_source(str(name)).form == str(run / "model")


def test_a_run_from_nothing_has_its_form_in_its_folder(run: Path, checkpoint: Path) -> None:
    """`model=scratch` has no path; one that is gone is replaced by what the run itself left."""
    state = run / "checkpoints" / "step_000007" / "state.json"
    for model in ({"seed": 0}, {"path": "/nowhere/at/all"}):
        state.write_text(json.dumps(json.loads(state.read_text()) | {"config": {"model": model}}))
        shutil.rmtree(run / "initial_model", ignore_errors=True)
        with pytest.raises(ValueError, match=r"started from is not known, .* is gone.*: add form=FOLDER"):
            find_source(str(run))
        shutil.copytree(checkpoint, run / "initial_model")
        assert find_source(str(run)).form == str(run / "initial_model")
        assert find_source(str(run), form="tiny").form.endswith("models/tiny")


@pytest.mark.parametrize(
    ("named", "form", "line"),
    [
        ("rum", None, r"checkpoint=.*/rum: nothing to export there, did you mean 'run'\? name a run's folder"),
        ("else", None, r"checkpoint=.*/else: nothing to export there: name a run's folder"),
        ("model", "tiny", r"form=tiny is for training checkpoints, and .*/model holds none: leave it out"),
        ("run", "tinny", r"there is no checkpoint 'tinny'.*did you mean 'tiny'\?"),
    ],
)
def test_what_is_not_found_is_said_in_a_line(run: Path, checkpoint: Path, tmp_path: Path, named, form, line) -> None:
    shutil.copytree(checkpoint, tmp_path / "model")
    with pytest.raises(ValueError, match=f"^{line}"):
        find_source(str(tmp_path / named), form)


def test_another_model_is_refused(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = json.loads((checkpoint / "config.json").read_text())
    shutil.copytree(checkpoint, tmp_path / "deeper")
    other["text_config"] |= {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}
    (tmp_path / "deeper" / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"^the model has .*layers\.3\..* and 11 more that .*step_000007 has not"):
        run_export(checkpoint=run, path=tmp_path / "out", form=tmp_path / "deeper")
    other["text_config"] |= {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3, "intermediate_size": 256}
    (tmp_path / "deeper" / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"step_000007 has .*mlp\.\w+\.weight of shape \[.*352.*\], the model \[.*256"):
        run_export(checkpoint=run, path=tmp_path / "out", form=tmp_path / "deeper")
    assert not (tmp_path / "out").exists()


# Where it goes.


def test_a_killed_export_leaves_nothing_half(run: Path, policy, processor, tmp_path: Path, monkeypatch) -> None:
    before = run_export(checkpoint=run, path=tmp_path / "out")
    kept = {file.name: file.read_bytes() for file in before.iterdir()}

    def killed(self, folder, **options):
        raise KeyboardInterrupt

    for place in (tmp_path / "out", tmp_path / "new"):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(type(processor), "save_pretrained", killed)
            write_model(policy, processor, whole_state(policy), place, instruction=None)
    assert {file.name: file.read_bytes() for file in before.iterdir()} == kept
    assert not (tmp_path / "new").exists()
    run_export(checkpoint=run, path=tmp_path / "new", dtype="bfloat16")
    run_export("overwrite=true", checkpoint=run, path=tmp_path / "out", dtype="bfloat16")
    assert {entry.name for entry in tmp_path.iterdir()} == {"run", "out", "new"}
    assert policy_of(tmp_path / "out").dtype == policy_of(tmp_path / "new").dtype == torch.bfloat16


def test_nothing_is_overwritten_unasked(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    source = find_source(str(run))
    check_place(tmp_path / "new", source, overwrite=False)
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty", source, overwrite=False)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("years of work")
    (tmp_path / "link").symlink_to(run, target_is_directory=True)
    for name, overwrite, line in (
        ("notes", False, "is not empty: name another, or replace what is in it with overwrite=true"),
        ("notes", True, r"overwrite=true replaces models alone, and path=.*notes has no config\.json"),
        ("notes/thesis.tex", True, "is a file: name a folder"),
        ("link", True, "is a link, which is not replaced"),
        ("run", True, "which is exported from: name another folder"),
    ):
        with pytest.raises(ValueError, match=line):
            check_place(tmp_path / name, source, overwrite=overwrite)
    shutil.copytree(checkpoint, tmp_path / "model")
    with pytest.raises(ValueError, match="which is exported from"):
        check_place(tmp_path / "model", find_source(str(tmp_path / "model")), overwrite=True)
    with pytest.raises(ValueError, match="is not empty"):
        run_export(checkpoint=run, path=tmp_path / "notes")
    assert (tmp_path / "notes" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"dtype": "bfloat"}, r"dtype must be .*, got 'bfloat', did you mean 'bfloat16'\?"),
        ({"dtyp": "keep"}, r"dtyp is read by nothing, did you mean 'dtype'\?"),
        ({"max_shard_size": "5 gigabytes"}, r"max_shard_size must be a number and KB, MB or GB, as 5GB"),
        ({"push_to_hub": "my-model"}, r"push_to_hub must be owner/name, got 'my-model'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        check_config({"checkpoint": "x", "path": "y", **settings}, sections={"": ExportSettings})


# The command, and the hub.


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`export.py` with nobody logged in but by `environment`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, ROOT / "export.py", *arguments], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**kept, "HF_HOME": str(folder / "hub"), **environment},
    )  # fmt: skip


def test_push_is_refused_at_once_where_nobody_is_logged_in(run: Path, tmp_path: Path) -> None:
    done = command(tmp_path, f"checkpoint={run}", "path=out", "push_to_hub=me/mine")
    assert done.returncode == 2
    assert done.stderr == "error: push_to_hub=me/mine needs a login: run `hf auth login`, or set HF_TOKEN\n"
    assert not (tmp_path / "out").exists()


def test_the_hub_gets_what_was_exported(run: Path, tmp_path: Path) -> None:
    """By the real client, against a server of the same requests; the token is not in what is said or left."""
    with running_hub(token="hf_secret") as hub:
        arguments = (f"checkpoint={run}", "path=out", "push_to_hub=me/mine")
        refused = command(tmp_path, *arguments, HF_ENDPOINT=hub.url, HF_TOKEN="hf_wrong")
        assert refused.returncode == 2 and refused.stderr.startswith("error: push_to_hub=me/mine: the hub does not")
        assert "HTTP 401" in refused.stderr and not (tmp_path / "out").exists() and not hub.made
        done = command(tmp_path, *arguments, HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret")
        assert done.returncode == 0, done.stderr
        assert f"pushed to {hub.url}/me/mine" in done.stdout
    files = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert hub.files == files and hub.made == [{"name": "mine", "organization": "me", "visibility": "private"}]
    said = refused.stdout + refused.stderr + done.stdout + done.stderr
    assert "hf_secret" not in said and "hf_wrong" not in said
    assert not any(b"hf_secret" in content for content in files.values())
    left = [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    assert left == [] and {entry.name for entry in tmp_path.iterdir()} <= {"run", "out", "hub"}


def adapted_run(checkpoint: Path, run: Path, **options: object):
    """A policy whose adapters moved, and its checkpoint as a run that loads the base by `options` writes it."""
    from atrl.models.load import PretrainedModel
    from atrl.models.lora import Lora

    policy = PretrainedModel(path=str(checkpoint), lora=Lora(rank=3), **options).load(checkpoint).model
    adapters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=1e-1)
    for _ in range(2):  # the first step moves one of each two matrices
        sum(parameter.square().sum() + parameter.sum() for parameter in adapters).backward()
        optimizer.step()
    model = {"path": str(checkpoint), "lora": {"_target_": "os.abort", "rank": 3}, **options}
    state = {"step": 7, "config": {"model": model}, "base": weights_fingerprint(checkpoint)}
    write_checkpoint(run / "checkpoints", state, policy, optimizer)
    return policy


def test_adapters_are_exported_with_the_model_that_they_were_trained_beside(
    processor, checkpoint: Path, tmp_path: Path
) -> None:
    """A checkpoint holds the adapters alone; what the file says is their class is not called."""
    policy = adapted_run(checkpoint, tmp_path / "run")
    folder = run_export(checkpoint=tmp_path / "run", path=tmp_path / "out")
    expected, exported = whole_state(policy), policy_of(folder).state_dict()
    assert all(torch.equal(exported[name], value) for name, value in expected.items())
    start = policy_of(checkpoint).state_dict()
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    assert name in expected and not torch.equal(exported[name], start[name])
    assert torch.allclose(logits_of(policy_of(folder), processor), logits_of(policy.eval(), processor), atol=1e-4)


def test_adapters_are_added_to_no_other_weights_than_those_that_they_were_trained_beside(
    checkpoint: Path, tmp_path: Path
) -> None:
    """The path that the run began with may name another model by now: its own, with the adapters in it already."""
    base = shutil.copytree(checkpoint, tmp_path / "latest")
    adapted_run(base, tmp_path / "run")
    first = run_export(checkpoint=tmp_path / "run", path=tmp_path / "first")
    shutil.rmtree(base)
    shutil.copytree(first, base)
    with pytest.raises(ValueError, match=r"beside other weights than those in \S+/latest: name .* by form=FOLDER$"):
        run_export(checkpoint=tmp_path / "run", path=tmp_path / "second")
    assert not (tmp_path / "second").exists()
    again = run_export(checkpoint=tmp_path / "run", path=tmp_path / "second", form=checkpoint)
    expected, exported = (policy_of(folder).state_dict() for folder in (first, again))
    assert all(torch.equal(exported[name], value) for name, value in expected.items())


@pytest.mark.parametrize("base, dtype", [("float32", "bfloat16"), ("bfloat16", "keep"), ("bfloat16", "float32")])
def test_adapters_are_merged_in_the_precision_that_they_were_trained_beside(
    checkpoint: Path, tmp_path: Path, base: str, dtype: str
) -> None:
    """What the policy computed with, and then cast: no finer a base than it had."""
    policy = adapted_run(checkpoint, tmp_path / "run", dtype=base)
    folder = run_export(checkpoint=tmp_path / "run", path=tmp_path / "out", dtype=dtype)
    wanted = base if dtype == "keep" else dtype
    assert json.loads((folder / "config.json").read_text())["dtype"] == wanted
    exported = policy_of(folder).state_dict()
    for name, value in whole_state(policy).items():
        assert value.dtype == getattr(torch, base)
        assert exported[name].dtype == getattr(torch, wanted) and torch.equal(exported[name], value.to(exported[name]))
