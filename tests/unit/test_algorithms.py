"""Every file of conf/algorithm: what it builds, and which other options it goes with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from atrl.advantage import GroupAdvantage
from atrl.config import check_config
from atrl.loss.aggregation import ConstantLength, SequenceMean, TokenMean
from atrl.loss.checks import credit_suits_the_loss, overlong_fits_the_response
from atrl.loss.cispo import ClippedWeightLoss
from atrl.loss.clipped import ClippedLoss
from atrl.loss.gspo import GspoTokenLoss, SequenceClippedLoss
from atrl.loss.objective import Objective
from atrl.loss.overlong import OverlongPenalty
from atrl.loss.sapo import SoftAdaptiveLoss
from atrl.rollout.dynamic import DynamicSampling

CONF = Path(__file__).parents[2] / "conf"
HERE = __name__


def parts(loss, aggregation, *, scale="std", **options) -> Objective:
    return Objective(advantage=GroupAdvantage(scale=scale), loss=loss, aggregation=aggregation, **options)


PUBLISHED = {
    "grpo": parts(ClippedLoss(clip_low=0.2, clip_high=0.28), TokenMean()),
    "grpo_paper": parts(ClippedLoss(clip_low=0.2, clip_high=0.2), SequenceMean(), kl_coefficient=0.04),
    "dr_grpo": parts(ClippedLoss(clip_low=0.2, clip_high=0.2), ConstantLength(), scale="none"),
    "dapo": parts(
        ClippedLoss(clip_low=0.2, clip_high=0.28),
        TokenMean(),
        overlong=OverlongPenalty(cache_tokens=None, weight=1.0),
        dynamic_sampling=DynamicSampling(max_draws=4),
    ),
    "gspo": parts(SequenceClippedLoss(clip_low=3e-4, clip_high=4e-4), SequenceMean()),
    "gspo_token": parts(GspoTokenLoss(clip_low=3e-4, clip_high=4e-4), SequenceMean()),
    "sapo": parts(SoftAdaptiveLoss(temperature_positive=1.0, temperature_negative=1.05), SequenceMean()),
    "cispo": parts(ClippedWeightLoss(clip_low=1.0, clip_high=4.0), TokenMean()),
}
"""What the papers say; `docs/method.md` has the sources."""


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["~logger", *overrides])  # its folder is that of a run


def refusal(*overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        check_config(composed(*overrides))
    return str(caught.value)


def test_every_file_is_listed_here():
    assert sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml")) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_it_builds(name):
    config = composed(f"algorithm={name}", "credit=none")
    check_config(config)
    assert instantiate(config.algorithm) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_says_what_each_option_does(name):
    lines = (CONF / "algorithm" / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert {"kl_coefficient", "updates_per_batch"} <= {line.partition(":")[0] for line in lines if "  # " in line}


@pytest.mark.parametrize("name", PUBLISHED)
def test_token_credit_goes_with_all_but_plain_gspo(name):
    if name == "gspo":
        assert refusal(f"algorithm={name}", "credit=atrl") == (
            "credit=atrl can't be used with SequenceClippedLoss, whose ratio and clip are per response: "
            "use algorithm=gspo_token, which weighs tokens, or credit=none"
        )
    else:
        check_config(composed(f"algorithm={name}", "credit=atrl"))


@dataclass(frozen=True, kw_only=True)
class OneRatio:
    accepts_token_credit = False


@dataclass(frozen=True, kw_only=True)
class Silent:
    pass


@dataclass(frozen=True, kw_only=True)
class Even:
    name = "even"
    is_uniform = True


@dataclass(frozen=True, kw_only=True)
class Uneven:
    name = "uneven"
    is_uniform = False


@pytest.mark.parametrize(
    ("loss", "credit", "refused"),
    [
        ("OneRatio", "Uneven", True),
        ("OneRatio", "Silent", True),  # a scheme that doesn't say that it is uniform
        ("OneRatio", "Even", False),
        ("OneRatio", None, False),
        ("Silent", "Uneven", False),
    ],
)
def test_the_classes_decide_whatever_the_files_are_called(loss, credit, refused):
    config = {"algorithm": {"loss": {"_target_": f"{HERE}.{loss}"}}}
    config["credit"] = None if credit is None else {"_target_": f"{HERE}.{credit}"}
    message = credit_suits_the_loss(OmegaConf.create(config))
    assert (message is not None) is refused
    assert message is None or message.startswith(f"credit={'uneven' if credit == 'Uneven' else 'Silent'} can't be used")


def test_uniform_credit_goes_with_gspo():
    assert credit_suits_the_loss(composed("algorithm=gspo", "credit=uniform")) is None


def test_a_product_goes_with_gspo_if_all_of_its_schemes_do():
    assert refusal("algorithm=gspo", "credit=entropy_atrl").startswith("credit=product can't be used with Sequence")
    uniform, papo = {"_target_": "atrl.credit.uniform.UniformCredit"}, {"_target_": "atrl.credit.papo.PapoCredit"}
    config = composed("algorithm=gspo", "credit=entropy_atrl")
    config.credit.schemes = [uniform, papo]
    assert credit_suits_the_loss(config) is None
    config.credit.schemes = [uniform, {"_target_": "atrl.credit.entropy.EntropyCredit"}]
    assert credit_suits_the_loss(config).startswith("credit=product can't be used with SequenceClippedLoss")


def test_the_overlong_cache_fits_the_response():
    message = "algorithm.overlong.cache_tokens must be at most rollout.max_response_tokens=8, got 9: null is a fifth"
    assert refusal("algorithm=dapo", "algorithm.overlong.cache_tokens=9", "rollout.max_response_tokens=8").startswith(
        message
    )
    check_config(composed("algorithm=dapo", "algorithm.overlong.cache_tokens=8", "rollout.max_response_tokens=8"))
    assert overlong_fits_the_response(OmegaConf.create({"rollout": {"max_response_tokens": 8}})) is None
    assert overlong_fits_the_response(OmegaConf.create({"algorithm": {"overlong": {"cache_tokens": 8}}})) is None


def test_what_happens_to_rewards_can_be_switched_off():
    config = composed("algorithm=dapo", "algorithm.overlong=null", "algorithm.dynamic_sampling=null")
    check_config(config)
    assert instantiate(config.algorithm) == PUBLISHED["grpo"]


@pytest.mark.parametrize("key", ["loss", "overlong", "dynamic_sampling"])
def test_a_value_that_is_no_component_is_refused(key):
    assert refusal("algorithm=dapo", f"algorithm.{key}=3").startswith(f"algorithm.{key} must be a component (")
