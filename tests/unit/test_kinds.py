"""Components of the wrong kind are refused before anything is built, and whatever can do the work is let through."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from atrl.config import check_config
from atrl.kinds import items_of, kinds_of, misfit

if TYPE_CHECKING:
    from nowhere_to_be_found import Unknown

HERE = __name__
CONF = Path(__file__).parents[2] / "conf"


class Sums:
    def __call__(self, loss: int, mask: int) -> int:
        return loss + mask

    def close(self) -> None: ...


class Derived(Sums):
    def __call__(self, loss: int, mask: int, more: int) -> int:  # type: ignore[override]
        return loss + mask + more


class OtherNames:
    def __call__(self, per_token: int, trained: int, scale: int = 1) -> int:
        return per_token * trained * scale

    def close(self) -> None: ...


class AnyArguments:
    def __call__(self, *arguments: int, **options: int) -> int:
        return len(arguments)

    def close(self, now: bool = False) -> None: ...


class NeedsThree:
    def __call__(self, loss: int, mask: int, totals: int) -> int:
        return loss + mask + totals

    def close(self) -> None: ...


class NeverCloses:
    def __call__(self, loss: int, mask: int) -> int:
        return loss


class Named(Protocol):
    limit: int

    def ask(self, question: str, *, patience: int, loudly: bool = False) -> str: ...


class Answers:
    def ask(self, question: str, patience: int) -> str:
        return question * patience


class Mute:
    def ask(self, question: str) -> str:
        return question


class Numbers:
    """Has no methods, so that nothing but its name tells it."""


class MoreNumbers(Numbers): ...


def needs_three() -> NeedsThree:
    return NeedsThree()


@pytest.mark.parametrize("factory", [Sums, Derived, OtherNames, AnyArguments])
def test_what_can_do_the_work_is_let_through(factory):
    assert misfit(factory, (Sums,)) is None


@pytest.mark.parametrize(
    ("factory", "kinds", "reason"),
    [
        (NeedsThree, (Sums,), "is no Sums: its __call__ does not take (loss, mask)"),
        (NeverCloses, (Sums,), "is no Sums: it has no close"),
        (Numbers, (Sums,), "is no Sums: it has no close"),
        (Mute, (Named,), "is no Named: its ask does not take (question, patience)"),
        (Sums, (Numbers,), "is no Numbers: it does not derive from it"),
        (Mute, (Numbers, Sums), "is no Numbers or Sums: it does not derive from it"),
    ],
)
def test_what_can_not_is_refused_with_the_reason(factory, kinds, reason):
    assert misfit(factory, kinds) == reason


def test_one_of_several_kinds_is_enough():
    assert misfit(MoreNumbers, (Sums, Numbers)) is None
    assert misfit(Answers, (Sums, Named)) is None  # the protocol's attribute may be set by its constructor
    assert misfit(Mute, ()) is None


@pytest.mark.parametrize(
    ("annotation", "kinds"),
    [
        (Sums, (Sums,)),
        (Sums | None, (Sums,)),
        (Sums | Numbers | None, (Sums, Numbers)),
        (Annotated[Sums, "words"], (Sums,)),
        (Sums | Any, None),
        (Any, None),
        (int, None),
        (list[Sums], None),
        (type[Sums], None),
    ],
)
def test_the_kinds_of_an_annotation(annotation, kinds):
    assert kinds_of(annotation) == kinds


@pytest.mark.parametrize(
    ("annotation", "item"),
    [
        (list[Sums], Sums),
        (tuple[Sums, ...], Sums),
        (tuple[Sums, Numbers], Any),
        (tuple[()], Any),
        (dict[str, Sums], Sums),
        (dict[str, Sums] | None, Sums),
        (list, Any),
        (Any, Any),
        (Sums, Any),
    ],
)
def test_what_the_items_are(annotation, item):
    assert items_of(annotation) is item


@dataclass(frozen=True, kw_only=True)
class Holder:
    sums: Sums | None = None
    several: list[Sums] | None = None
    named: dict[str, Sums] | None = None
    unknown: Unknown | None = None
    anything: Any = None


@pytest.fixture
def lines():
    def find(*kinds: str, **arguments: Any) -> list[str]:
        try:
            check_config(
                {"credit": {"_target_": f"{HERE}.Holder", **arguments}},
                sections={"": EmptySection},
                components={"credit": kinds},
                checks=(),
            )
        except ValueError as error:
            return str(error).splitlines()
        return []

    return find


@dataclass(frozen=True, kw_only=True)
class EmptySection: ...


def component(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"{HERE}.{name}", **arguments}


def test_components_are_held_against_the_annotation_of_their_place(lines):
    wrong = "is no Sums: its __call__ does not take (loss, mask)"
    assert lines(sums=component("NeedsThree")) == [f"credit.sums._target_: {HERE}.NeedsThree {wrong}"]
    assert lines(several=[component("Sums"), component("NeedsThree")]) == [
        f"credit.several.1._target_: {HERE}.NeedsThree {wrong}"
    ]
    assert lines(named={"a": component("NeedsThree")}) == [f"credit.named.a._target_: {HERE}.NeedsThree {wrong}"]
    assert lines(sums=component("OtherNames"), several=[component("Derived")], named={"a": component("Sums")}) == []
    assert lines(unknown=component("NeedsThree"), anything=component("NeedsThree")) == []
    assert lines(sums=component("NeedsThree", _partial_=True)) == []
    assert lines(sums=component("needs_three")) == []  # what a function makes isn't known before it is called


def test_a_class_that_is_not_there_is_reported_once(lines):
    assert lines(sums=component("Sumz")) == [
        f"credit.sums._target_: there is no 'Sumz' in {HERE}, did you mean 'Sums'?"
    ]


def test_a_group_has_a_kind_of_its_own(lines):
    assert lines(f"{HERE}.Holder") == [] and lines(f"{HERE}.Numbers", f"{HERE}.Holder") == []
    assert lines(f"{HERE}.Numbers") == [f"credit._target_: {HERE}.Holder is no Numbers: it does not derive from it"]
    # Of a component that is wrong in itself only that is said.
    (line,) = lines(f"{HERE}.Numbers", sum=1)
    assert line.startswith("credit.sum is not an option of ")


@pytest.mark.parametrize(
    ("key", "target", "reason"),
    [
        (
            "algorithm.aggregation",
            "atrl.loss.clipped.ClippedLoss",
            "is no TokenMean, SequenceMean or ConstantLength: its __call__ does not take (loss, mask, totals)",
        ),
        (
            "algorithm.correction",
            "atrl.loss.aggregation.TokenMean",
            "is no Correction: its __call__ does not take (log_ratio, mask)",
        ),
        ("credit", "atrl.loss.aggregation.TokenMean", "is no CreditScheme: it has no assign"),
        ("data", "atrl.credit.uniform.UniformCredit", "is no ProblemSource or OfficialRows: it has no baseline"),
        ("callbacks.mine", "atrl.credit.uniform.UniformCredit", "is no Callback: it has no load_state_dict"),
    ],
)
def test_real_places_refuse_what_belongs_elsewhere(key, target, reason):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["logger=csv", "hydra.run.dir=."])
    OmegaConf.set_struct(config, False)
    config.logger = None  # writes where Hydra says, which is not there
    OmegaConf.update(config, key, None)
    OmegaConf.update(config, key, {"_target_": target}, force_add=True)
    with pytest.raises(ValueError) as caught:
        check_config(config)
    assert str(caught.value) == f"{key}._target_: {target} {reason}"
