"""The file that keeps a model's head scores: when it is the same, and what becomes of bad ones."""

from __future__ import annotations

import json
import logging
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from atrl.credit import head_cache
from atrl.credit.base import HeadSearch
from atrl.credit.head_cache import cache_folder, cache_key, load_scores, store_scores
from atrl.rollout.base import Sampling

SEARCH = HeadSearch(count=2, criterion="contrast", layers=None, row="predicting", sink_factor=4.0)
SAMPLING = Sampling(group_size=1)
SCORES = [[0.25, 1.0, 0.0], [0.5, 0.1, 1e-9]]


def key(policy, prompts, search=SEARCH, sampling=SAMPLING) -> str:
    return cache_key(policy, search, [prompts["square"], prompts["two"]], sampling)


def test_the_folder_is_that_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/is/ignored"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == tmp_path / ".cache" / "atrl" / "heads"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "atrl" / "heads"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert cache_folder() == tmp_path / "other" / "atrl" / "heads"


def test_the_same_model_wherever_it_lies_has_one_key(policy, prompts, tmp_path):
    from transformers import AutoModelForImageTextToText

    first = key(policy, prompts)
    assert len(first) == 64 and key(policy, prompts) == first
    policy.save_pretrained(tmp_path)
    assert key(AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="eager"), prompts) == first
    assert key(policy, prompts, replace(SEARCH, count=3, layers=(1,))) == first  # they choose among the same scores


def test_other_frames_have_another_key(policy, processor):
    from video_prompts import problems

    from atrl.data.prompts import PromptBuilder

    prompt = PromptBuilder(processor=processor).build(problems()["video"])
    (frames,) = prompt.videos
    other = replace(prompt, videos=(replace(frames, images=(*frames.images[:-1], frames.images[0])),))
    assert cache_key(policy, SEARCH, [prompt], SAMPLING) != cache_key(policy, SEARCH, [other], SAMPLING)


def pixel_keys(policy, prompt, *changes: dict) -> list[str]:
    """With the processor's tensors as they are, and with each of `changes` to them."""
    changed = [replace(prompt, pixels=prompt.pixels | change) for change in ({}, *changes)]
    return [cache_key(policy, SEARCH, [each], SAMPLING) for each in changed]


def test_a_processor_that_scales_colours_otherwise_has_another_key(policy, processor, prompts):
    """The picture and the tokens stay the same, and the policy sees something else."""
    from atrl.data.prompts import PromptBuilder

    other = deepcopy(processor)
    other.image_processor.image_mean = [0.25, 0.5, 0.5]
    square = prompts["square"]
    again, scaled = (PromptBuilder(processor=made_by).build(square.problem) for made_by in (processor, other))
    keys = [cache_key(policy, SEARCH, [prompt], SAMPLING) for prompt in (square, again, scaled)]
    assert scaled.token_ids == square.token_ids and keys[0] == keys[1] != keys[2]


def test_another_frame_rate_has_another_key(policy, processor):
    from video_prompts import problems

    from atrl.data.prompts import PromptBuilder

    prompt = PromptBuilder(processor=processor).build(problems()["video"])
    seconds = prompt.pixels["second_per_grid_ts"]
    one, same, slower = pixel_keys(
        policy, prompt, {"second_per_grid_ts": seconds.clone()}, {"second_per_grid_ts": 4 * seconds}
    )
    assert one == same != slower


def test_every_side_of_a_tensor_counts(policy, prompts):
    """Its name, shape and type as well as what is in it; of bfloat16 numpy knows nothing."""
    zeros = torch.zeros(2, 4)
    given = [{"a": zeros}, {"b": zeros}, {"a": zeros.T}, {"a": zeros.int()}, {"a": zeros.bfloat16()}, {"a": zeros + 1}]
    given += [{"a": torch.tensor(0.0)}, {"a": zeros[:0]}, {"a": zeros, "b": zeros}]
    keys = pixel_keys(policy, prompts["square"], *given)
    assert len(set(keys)) == len(given) + 1
    assert pixel_keys(policy, prompts["square"], {"b": zeros, "a": zeros})[1] == keys[-1], "in whatever order"


def test_blanked_pictures_count_where_they_are_looked_at(policy, prompts):
    square, wide = prompts["square"], prompts["wide"]
    others = [(), (wide,), (replace(wide, pixels={name: tensor * 2 for name, tensor in wide.pixels.items()}),)]
    assert len({cache_key(policy, SEARCH, [square], SAMPLING, other=blank) for blank in others}) == 3


def test_another_precision_has_another_key(policy, prompts):
    with torch.autocast("cpu", torch.bfloat16):
        inside = key(policy, prompts)
    assert inside != key(policy, prompts)


def test_other_weights_have_another_key(policy, prompts):
    """One optimizer step; and one value of one parameter, at the end that every fingerprint looks at."""
    keys = [key(policy, prompts)]
    name, last = list(policy.named_parameters())[-1]
    with torch.no_grad():
        last.flatten()[-1] += 1
    keys.append(key(policy, prompts))
    optimizer = torch.optim.AdamW([last], lr=1e-4)
    last.sum().backward()
    optimizer.step()
    keys.append(key(policy, prompts))
    policy.config.get_text_config().rms_norm_eps = 1e-3
    keys.append(key(policy, prompts))
    assert len(set(keys)) == 4, name


def test_another_measurement_has_another_key(policy, prompts):
    keys = [key(policy, prompts)]
    for change in ({"criterion": "sensitivity"}, {"row": "own"}, {"sink_factor": 2.0}):
        keys.append(key(policy, prompts, replace(SEARCH, **change)))
    changes = {"temperature": 0.5, "max_response_tokens": 9, "group_size": 2, "top_p": 0.9, "top_k": 3, "min_p": 0.1}
    for change in ({name: value} for name, value in changes.items()):
        keys.append(key(policy, prompts, sampling=replace(SAMPLING, **change)))
    square = prompts["square"]
    repainted = replace(square, images=(Image.new("RGB", square.images[0].size),))
    for change in (repainted, replace(square, token_ids=[*square.token_ids, 5])):
        keys.append(key(policy, prompts | {"square": change}))
    assert len(set(keys)) == len(keys)


def test_what_is_stored_is_loaded_to_the_last_bit(tmp_path):
    path = tmp_path / "new" / "folder" / "x.json"
    assert load_scores(path, (2, 3)) is None
    store_scores(path, {"criterion": "contrast", "scores": SCORES})
    assert torch.equal(load_scores(path, (2, 3)), torch.tensor(SCORES, dtype=torch.float64))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"scores": 3}', '{"scores": [[1, 2, 3]]}', '{"scores": [[1, 2, 3], [1, 2]]}',
     '{"scores": [[1, 2, 3], [1, 2, NaN]]}', '{"scores": [[1, 2, 3], [1, 2, "3"]]}', '{"scores": ["abc", "def"]}',
     '{"scores": [[1, 2, 3], [1, 2, 1' + "0" * 400 + "]]}", "\udcff"],
)  # fmt: skip
def test_a_corrupt_file_is_ignored_with_a_warning(tmp_path, caplog, content):
    path = tmp_path / "x.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with caplog.at_level(logging.WARNING):
        assert load_scores(path, (2, 3)) is None
    (record,) = caplog.records
    assert str(path) in record.getMessage() and "measured again" in record.getMessage()


def test_a_write_that_fails_leaves_what_was_there(tmp_path, caplog, monkeypatch):
    path = tmp_path / "x.json"
    store_scores(path, {"scores": SCORES})
    before = path.read_bytes()

    def full_disk(content, file, **options):
        file.write('{"scores": [[')
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(head_cache.json, "dump", full_disk)
    with caplog.at_level(logging.WARNING):
        store_scores(path, {"scores": [[1.0]]})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert "No space left" in caplog.text


def test_no_reader_sees_half_a_file(tmp_path, monkeypatch):
    """The file appears under its name by a rename, complete."""
    path = tmp_path / "x.json"
    seen: list[tuple[bool, dict]] = []
    original = head_cache.os.replace

    def watched(source, target):
        seen.append((Path(target).exists(), json.loads(Path(source).read_text())))
        original(source, target)

    monkeypatch.setattr(head_cache.os, "replace", watched)
    store_scores(path, {"scores": SCORES})
    assert seen == [(False, {"scores": SCORES})]


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        store_scores(tmp_path / "file" / "x.json", {"scores": SCORES})
    assert "can't be cached" in caplog.text
    assert load_scores(tmp_path / "file" / "x.json", (2, 3)) is None
