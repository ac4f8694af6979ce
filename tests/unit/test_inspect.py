"""Inspecting one answer: which schemes are asked for, the terminal, the weights, and the page."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from atrl.config import check_config
from atrl.credit.atrl import AtrlCredit
from atrl.credit.attention import AttentionRequest
from atrl.credit.entropy import EntropyCredit
from atrl.credit.papo import PapoCredit
from atrl.credit.token_level import TokenLevelCredit
from atrl.credit.uniform import UniformCredit
from atrl.credit.vppo import VppoCredit
from atrl.data.templates import banned_token_ids, padding_id
from atrl.experience import build_experience
from atrl.inspect.command import own_problem, summary
from atrl.inspect.schemes import check_single, single_configs
from atrl.inspect.settings import InspectSettings
from atrl.inspect.terminal import painted, takes_colour
from atrl.inspect.weigh import weigh
from atrl.types import Rollout, RolloutGroup, Turn
from tests.unit.attention import read

CONF = Path(__file__).parents[2] / "conf"


# Which schemes, with which options.


def schemes(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("inspect", ["problem=0", *overrides])
        found = single_configs(config, ["problem=0", *overrides], "atrl")
    for alone in found.values():
        check_config(alone, sections={"": InspectSettings}, checks=())
    return {name: alone.credit for name, alone in found.items()}


def test_each_scheme_gets_its_own_options():
    found = schemes("credit=[atrl,token_level,entropy]", "credit.anchor_ratio=0.3", "credit.num_clusters=4")
    assert list(found) == ["atrl", "token_level", "entropy"]
    assert (found["atrl"].anchor_ratio, found["atrl"].num_clusters) == (0.3, 4)
    assert found["token_level"].anchor_ratio == 0.3 and "num_clusters" not in found["token_level"]
    assert "anchor_ratio" not in found["entropy"] and found["entropy"].ratio == 0.2


def test_one_scheme_and_none():
    assert list(schemes("credit=vppo")) == ["vppo"] and list(schemes()) == ["atrl"]
    with pytest.raises(ValueError, match="credit=none weighs nothing"):
        schemes("credit=none")


@pytest.mark.parametrize(
    ("scheme", "says"),
    [
        (VppoCredit(), "compares rollouts"),
        (EntropyCredit(within="batch"), "compares rollouts"),
        (AtrlCredit(heads="auto"), "name them, credit.heads="),
    ],
)
def test_what_a_single_answer_is_not_enough_for_is_refused(scheme, says):
    with pytest.raises(ValueError, match=says) as refused:
        check_single("it", scheme)
    assert "\n" not in str(refused.value)
    for enough in (VppoCredit(scale_low=1), EntropyCredit(), AtrlCredit()):
        check_single("it", enough)


# What is asked.


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"question": "Why?", "problem": 0}, "are both set"),
        ({"problem": 0, "image": "a.png"}, "has its own pictures"),
        ({"problem": -1}, "must be 0 or more"),
        ({"problem": 0, "threads": 0}, "threads must be at least 1"),
    ],
)
def test_settings_that_do_not_go_together(settings, says):
    with pytest.raises(ValueError, match=says):
        InspectSettings(checkpoint="tiny", **settings)


def test_pictures_and_videos_come_first_unless_the_question_has_marks():
    def asked(question: str) -> str:
        files = {"image": ["a.png", "b.png"], "video": "c.mp4"}
        return own_problem(InspectSettings(checkpoint="tiny", question=question, **files)).question

    assert asked("Same?") == "<image><image><video>Same?"
    assert asked("Is <image> in <video> and <image>?") == "Is <image> in <video> and <image>?"


# The terminal.


def test_without_colour_anchors_stand_in_brackets():
    text = painted(["A", " is", " 5", ",", "2", "."], [1] * 6, [False, False, True, True, True, False], colour=False)
    assert text == "A is[ 5,2]."
    assert painted(["a", "b"], [1.5, 0.5], None, colour=False) == "ab"


def test_with_colour_more_weight_is_stronger_and_anchors_are_marked():
    tokens, weights = ["none", "one", "most"], [0.0, 1.0, 4.0]
    text = painted(tokens, weights, [False, False, True], colour=True)
    none, one, most = re.findall(r"\x1b\[([\d;]*)m([^\x1b]+)\x1b\[0m", text)
    assert [none[1], one[1], most[1]] == tokens
    assert none[0] == "0" and one[0] == "30;48;5;230" and most[0] == "1;4;30;48;5;202"


@pytest.mark.parametrize("colour", [True, False])
def test_what_the_model_wrote_does_not_steer_the_terminal(colour):
    text = painted(["\x1b[2J", "\x07", "a\nb"], [1.0, 1.0, 1.0], None, colour=colour)
    ours = re.compile(r"\x1b\[(0|30;48;5;\d+)m")
    assert "\x1b" not in ours.sub("", text) and "\x07" not in text
    assert ours.sub("", text) == "␛[2J␇a\nb"


def test_colour_is_for_terminals_that_have_not_said_no():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert takes_colour(Terminal(), {"TERM": "xterm"})
    assert not takes_colour(io.StringIO(), {"TERM": "xterm"})
    assert not takes_colour(Terminal(), {"TERM": "xterm", "NO_COLOR": "1"})
    assert not takes_colour(Terminal(), {"TERM": "dumb"}) and not takes_colour(Terminal(), {})


# The weights.


@pytest.fixture
def group(prompts) -> RolloutGroup:
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(0, 500, (12,), generator=generator).tolist()
    return RolloutGroup(prompts["two"], [Rollout(token_ids, [-1.0] * 12, True)], ["text"], policy_version=0)


@pytest.fixture
def loaded(policy, processor, checkpoint):
    from atrl.models.load import LoadedModel

    return LoadedModel(policy, processor, checkpoint)


ASKED = {
    "atrl": AtrlCredit(num_clusters=3),
    "token_level": TokenLevelCredit(anchor_ratio=0.25),
    "entropy": EntropyCredit(ratio=0.25),
    "vppo": VppoCredit(scale_low=1),
    "papo": PapoCredit(),
    "uniform": UniformCredit(),
}


def test_weights_are_those_that_training_would_give(group, loaded):
    """As the module works them out: the callback's binding, and the same pass with gradients on."""
    from atrl.callbacks.anchor_credit import AnchorCreditCallback
    from atrl.credit.bound import BoundCredit
    from atrl.credit.probe import AttentionProbe
    from atrl.forward import ForwardPass

    found = {one.name: one for one in weigh(ASKED, group, loaded, temperature=0.7, seed=5)}
    banned = banned_token_ids(loaded.processor)
    pad = padding_id(loaded.processor.tokenizer, banned)
    for name, scheme in ASKED.items():
        callback = AnchorCreditCallback(scheme, loaded.processor)
        probe = AttentionProbe(loaded.model, scheme.requests) if scheme.requests else None
        bound = BoundCredit(scheme, probe, callback._scale, loaded.processor.tokenizer)
        batch = bound.prepare(build_experience([group], pad_id=pad, seed="5/inspect"), [group])
        loaded.model.train()
        forward = ForwardPass(temperature=0.7, banned_ids=banned)(loaded.model, batch, bound, read=True)
        wanted = scheme.assign(batch, forward.evidence)
        if probe is not None:
            probe.detach()
        torch.testing.assert_close(found[name].weights, wanted.weights[0], rtol=0, atol=1e-5)
        assert (found[name].anchors is None) == (wanted.anchors is None)
        if wanted.anchors is not None:
            assert torch.equal(found[name].anchors, wanted.anchors[0])
        torch.testing.assert_close(found[name].entropy, forward.entropy[0].detach(), rtol=0, atol=1e-5)
    assert len({tuple(one.weights.tolist()) for one in found.values()}) == 5  # papo's and uniform's alone are the same


def test_every_scheme_shows_where_the_tokens_looked(group, loaded):
    kernel = loaded.model.config.get_text_config()._attn_implementation
    for one in weigh(ASKED, group, loaded, temperature=1.0, seed=0):
        assert [tuple(grid.shape) for grid in one.attention] == [(12, *shape) for shape in grids(group)]
        assert all(grid.max() > 0 for grid in one.attention)
    assert loaded.model.config.get_text_config()._attn_implementation == kernel  # the model has its own back


def test_heat_maps_are_of_the_heads_that_a_scheme_reads_or_of_all(group, loaded):
    asked = {"all": TokenLevelCredit(), "one": TokenLevelCredit(heads=((0, 1),)), "none": UniformCredit()}
    shown = {one.name: one.attention[0] for one in weigh(asked, group, loaded, temperature=1.0, seed=0)}
    torch.testing.assert_close(shown["all"], shown["none"], rtol=0, atol=1e-6)
    assert (shown["one"] - shown["all"]).abs().max() > 1e-3


def test_how_attention_is_divided_among_the_pictures(group, loaded):
    """By tokens of weight w: Σ w·mass on one picture of all mass on pictures; the mass itself is the same for all."""
    request = AttentionRequest(neighbours=0, detail=True)
    banned = banned_token_ids(loaded.processor)
    batch = build_experience([group], pad_id=padding_id(loaded.processor.tokenizer, banned), seed="0/inspect")
    mass = read(loaded.model, batch, request).mass[0].mean(dim=(0, 1))
    first = grids(group)[0][0] * grids(group)[0][1]
    wanted = torch.stack([mass[:, :first].sum(dim=1), mass[:, first:].sum(dim=1)], dim=1)
    for one in weigh(ASKED, group, loaded, temperature=1.0, seed=0):
        torch.testing.assert_close(one.pictures, wanted, rtol=0, atol=1e-5)
        by_hand = (one.weights[:, None] * wanted).sum(dim=0)
        assert one.shares == pytest.approx((by_hand / by_hand.sum()).tolist(), abs=1e-4)
        shares = " : ".join(f"{share:.0%}" for share in one.shares)
        assert summary(one).endswith(f", attention on pictures {shares}") and sum(one.shares) == pytest.approx(1)


def test_parts_of_pictures_are_not_shown_as_pictures(group, loaded):
    """As of a family without grids, where a picture may be several runs of image tokens."""
    prompt = group.prompt
    other = replace(group, prompt=replace(prompt, images=[*prompt.images, prompt.images[0]]))
    (one,) = weigh({"entropy": EntropyCredit()}, other, loaded, temperature=1.0, seed=0)
    assert one.pictures is None and one.shares == [] and "pictures" not in summary(one)


def grids(group: RolloutGroup) -> list[tuple[int, int]]:
    return [(int(rows) // 2, int(columns) // 2) for _, rows, columns in group.prompt.pixels["image_grid_thw"]]


def test_an_answer_without_a_picture_can_be_weighed(prompts, loaded):
    group = RolloutGroup(prompts["none"], [Rollout([5, 6, 7, 8], [-1.0] * 4, True)], ["text"], policy_version=0)
    for one in weigh({"entropy": EntropyCredit(), "atrl": AtrlCredit()}, group, loaded, temperature=1.0, seed=0):
        assert one.attention is None and one.weights.mean() == pytest.approx(1.0)
        assert one.shares == [] and "pictures" not in summary(one)


# The page.


def test_the_page_holds_every_scheme_and_nothing_hostile(group, loaded, tmp_path):
    from atrl.inspect.page import write_page

    found = weigh({"atrl": AtrlCredit(), "uniform": UniformCredit()}, group, loaded, temperature=1.0, seed=0)
    tokens = ["</script><script>alert(1)</script>", "\udcff", *map(str, range(10))]
    page = write_page(tmp_path, group, tokens, found, checkpoint="<b>tiny</b>", drawn=False).read_text()
    assert page.count('<article class="card rollout"') == 2 and page.count('<svg class="heat"') == 2 * 2
    assert "<b>tiny" not in page and "<script>alert" not in page and page.count("src=") == page.count('src="data:')
    record = json.loads((tmp_path / "inspection.json").read_text(errors="surrogatepass"))
    assert list(record["schemes"]) == ["atrl", "uniform"] and record["schemes"]["uniform"]["weights"] == [1.0] * 12
    assert record["schemes"]["atrl"]["anchors"] == found[0].anchors.tolist()
    assert page.count("attention on picture 1 <b>") == 2
    np.testing.assert_allclose(record["pictures"], found[0].pictures, rtol=0, atol=1e-5)


def test_a_long_answer_is_in_the_page_once(group, loaded, tmp_path, monkeypatch):
    """What the script adds when a reader unfolds it is there already."""
    from atrl.inspect.page import write_page

    monkeypatch.setattr("atrl.report.cards.LONG_RESPONSE", 5)
    found = weigh({"uniform": UniformCredit()}, group, loaded, temperature=1.0, seed=0)
    page = write_page(tmp_path, group, list(map(str, range(12))), found, checkpoint="tiny", drawn=False).read_text()
    (data,) = json.loads(re.search(r'id="rollout-data">(.*?)</script>', page)[1])
    response = re.search(r'<div class="response long".*?</div>', page)[0]
    assert response.count("<span") + len(data["folded"]) == 12


def test_the_page_has_what_was_said_before_the_question(group, loaded, tmp_path):
    from atrl.inspect.page import write_page

    problem = replace(group.prompt.problem, history=(Turn("user", "Say hello."), Turn("assistant", "Hello it is.")))
    asked = replace(group, prompt=replace(group.prompt, problem=problem))
    found = weigh({"uniform": UniformCredit()}, group, loaded, temperature=1.0, seed=0)
    page = write_page(tmp_path, asked, ["a"] * 12, found, checkpoint="tiny", drawn=False).read_text()
    assert "user: Say hello.\nassistant: Hello it is.\nuser: " in page
