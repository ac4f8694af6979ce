"""`credit.heads=auto` in the real loop: which heads, from where, and what it costs the run (nothing)."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace

import pytest

from atrl.models.load import BUNDLED
from atrl.rollout.transformers import TransformersSampler
from tests.integration.conftest import compose_config
from tests.integration.test_training import Watch, moved

MODEL = BUNDLED["tiny"]
AUTO = ("rollout=transformers", "credit.heads=auto", "credit.auto_heads=3", "credit.workers=0")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "atrl" / "heads"


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """The seed of every call of the sampler."""
    seeds: list[str] = []
    original = TransformersSampler.generate

    def generate(self, prompts, sampling, *, seed):
        seeds.append(seed)
        return original(self, prompts, sampling, seed=seed)

    monkeypatch.setattr(TransformersSampler, "generate", generate)
    return seeds


def choice(run) -> dict:
    return json.loads((run.folder / "heads.json").read_text())


def test_auto_is_the_run_with_the_heads_that_it_finds(train, drawn, caplog) -> None:
    """Rollouts before and after the first step, weights and parameters are those of a run that names the heads."""
    watch, named_watch = Watch(), Watch()
    with caplog.at_level(logging.INFO, logger="atrl"):
        auto = train(*AUTO, name="auto", watch=watch)
    found = choice(auto)
    ranked = sorted(
        ((layer, head) for layer in range(3) for head in range(4)),
        key=lambda pair: -found["scores"][pair[0]][pair[1]],
    )
    assert (found["criterion"], found["cached"]) == ("dependency", False)
    assert found["chosen"] == [list(pair) for pair in ranked[:3]]
    assert f"3 of 12 heads by dependency from 32 responses: {found['chosen']}" in caplog.text
    assert auto.trained.credit.scheme == replace(auto.parts.credit, heads=tuple(ranked[:3]))
    assert drawn.count("heads") == 1
    named = train(
        "rollout=transformers", "credit.workers=0", f"credit.heads={found['chosen']}", "credit.auto_heads=3",
        name="named", watch=named_watch,
    )  # fmt: skip
    assert drawn.count("heads") == 1 and not (named.folder / "heads.json").exists()
    assert (auto.folder / "rollouts.jsonl").read_text() == (named.folder / "rollouts.jsonl").read_text()
    assert moved(auto.trained.module.policy.state_dict(), named.trained.module.policy.state_dict()) == set()
    assert auto.trained.before.groups[0].rollouts == named.trained.before.groups[0].rollouts
    assert auto.trained.module.credit is None  # the probe is gone, as after any run
    assert auto.trained.module.policy.config.get_text_config()._attn_implementation == "sdpa"


def test_a_second_run_takes_the_choice_from_the_cache(train, cache, drawn, caplog) -> None:
    first = train(*AUTO, "trainer.evaluate_samples=0", name="first")
    (file,) = cache.iterdir()
    with caplog.at_level(logging.INFO, logger="atrl"):
        second = train(*AUTO, "trainer.evaluate_samples=0", "seed=1", "credit.auto_heads=2", name="second")
    assert drawn.count("heads") == 1
    assert f"from the cache ({file}), no response was sampled" in caplog.text
    assert choice(second) == choice(first) | {"cached": True, "chosen": choice(first)["chosen"][:2]}
    assert len(second.trained.credit.scheme.heads) == 2

    # The policy that a run leaves has other weights.
    trained = train(
        *AUTO, "trainer.evaluate_samples=0", "optimizer.learning_rate=1e-3", "trainer.max_steps=1", name="third"
    )
    trained.trained.module.policy.save_pretrained(trained.folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        (trained.folder / "model" / name).write_bytes((MODEL / name).read_bytes())
    other = train(*AUTO, "trainer.evaluate_samples=0", f"model.path={trained.folder}", name="other")
    assert drawn.count("heads") == 2 and len(list(cache.iterdir())) == 2
    assert choice(other)["scores"] != choice(first)["scores"]


def test_a_corrupt_cache_is_measured_again_and_mended(train, cache, drawn, caplog) -> None:
    first = train(*AUTO, "trainer.evaluate_samples=0", "trainer.max_steps=1", name="first")
    (file,) = cache.iterdir()
    good = file.read_text()
    file.write_text(good[: len(good) // 2])
    second = train(*AUTO, "trainer.evaluate_samples=0", "trainer.max_steps=1", name="second")
    assert drawn.count("heads") == 2 and "can't be used" in caplog.text
    assert list(cache.iterdir()) == [file] and file.read_text() == good  # measuring twice gives the same to the bit
    assert choice(second) == choice(first)


def test_every_scheme_and_criterion_goes_through(train, cache) -> None:
    """Sensitivity reads blanked pictures, dependency masked ones; a product resolves the schemes in it."""
    options = ("rollout=transformers", "trainer.evaluate_samples=0", "trainer.max_steps=1")
    criteria = {"token_level": "sensitivity", "anchor_only": "relative_contrast", "low_connectivity": "contrast"}
    for scheme, criterion in criteria.items():
        run = train(
            *options, f"credit={scheme}", "credit.heads=auto", f"credit.head_criterion={criterion}", name=scheme
        )
        assert choice(run)["criterion"] == criterion and len(run.trained.credit.scheme.heads) == 8
    product = train(*options, "credit=entropy_atrl", "+credit.schemes.0.heads=auto", name="product")
    assert [list(pair) for pair in product.trained.credit.scheme.schemes[0].heads] == choice(product)["chosen"]


def test_the_sampler_is_ready_whatever_the_order_of_the_callbacks(train, monkeypatch) -> None:
    from atrl import stages

    fit = stages.fit
    monkeypatch.setattr(stages, "fit", lambda *arguments: fit(*arguments[:-1], arguments[-1][::-1]))
    run = train(*AUTO, "trainer.evaluate_samples=0", "trainer.max_steps=1")
    assert len(choice(run)["chosen"]) == 3


def test_a_policy_that_is_shown_no_picture_is_told(train, tmp_path) -> None:
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps({"problem": f"{n} + 1", "answer": str(n + 1)}) + "\n" for n in range(4)))
    with pytest.raises(ValueError, match=r"^credit\.heads=auto finds heads by what they look at in pictures"):
        train(*AUTO, "data=jsonl", f"data.path={data}", "data.images_column=null", "trainer.evaluate_samples=0")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("credit.heads=autoo", r"^credit\.heads must be .*auto.*, got 'autoo', did you mean 'auto'\?$"),
        ("credit.auto_heads=0", r"^credit\.auto_heads must be at least 1, got 0: try 8$"),
        (
            "credit.head_criterion=contrst",
            r"^credit\.head_criterion must be .*, got 'contrst', did you mean 'contrast'",
        ),
    ],
)
def test_bad_options_are_one_line(tmp_path, override, message) -> None:
    from hydra.errors import InstantiationException

    from atrl.pipeline import instantiate_parts

    with pytest.raises((ValueError, InstantiationException)) as caught:
        instantiate_parts(compose_config(tmp_path, override), tmp_path)
    said = str(caught.value.__cause__ or caught.value)  # Hydra wraps what constructors raise
    assert re.search(message, said) and "\n" not in said
