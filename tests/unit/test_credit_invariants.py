"""What every credit scheme promises, whatever its options."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
import torch
from credit_evidence import ROWS, batch_of, evidence_of

from atrl.credit.anchor_only import AnchorOnlyCredit
from atrl.credit.atrl import AtrlCredit
from atrl.credit.bound import BoundCredit, PictureScale
from atrl.credit.entropy import EntropyCredit
from atrl.credit.hidden_cosine import HiddenCosineCredit
from atrl.credit.kawhi import KawhiCredit
from atrl.credit.low_connectivity import LowConnectivityCredit
from atrl.credit.oracle import OracleCredit
from atrl.credit.papo import PapoCredit
from atrl.credit.product import ProductCredit
from atrl.credit.query_key_cosine import QueryKeyCosineCredit
from atrl.credit.random import RandomCredit
from atrl.credit.token_level import TokenLevelCredit
from atrl.credit.uniform import UniformCredit
from atrl.credit.visual_dependency import VisualDependencyCredit
from atrl.credit.vppo import VppoCredit

CONF = Path(__file__).parents[2] / "conf" / "credit"
SCHEMES = [
    UniformCredit(),
    *(
        AtrlCredit(reduction=reduction, weights=weights, edges=edges)
        for reduction in ("relative", "peak", "mean", "top_heads")
        for weights in ("anchors", "load_map")
        for edges in ("attention", "similarity", "both")
    ),
    AtrlCredit(rest_weight=0.0),
    AtrlCredit(rest_weight=0.0, weights="load_map", num_clusters=16, sink_factor=0),
    AtrlCredit(num_clusters=1, neighbours=1),
    AtrlCredit(num_clusters="auto", rank_clusters="peak"),
    RandomCredit(),
    RandomCredit(anchor_ratio=0.5, rest_weight=0.0, seed=3),
    *(
        scheme(reduction=reduction)
        for scheme in (TokenLevelCredit, AnchorOnlyCredit, LowConnectivityCredit)
        for reduction in ("relative", "peak", "mean", "top_heads")
    ),
    TokenLevelCredit(rest_weight=0.0, sink_factor=0),
    LowConnectivityCredit(anchor_ratio=0.9),
    EntropyCredit(),
    EntropyCredit(within="batch"),
    EntropyCredit(within="batch", ratio=0.01),
    VppoCredit(),
    VppoCredit(scale_low=1.0),
    VppoCredit(scale_low=0.0, ratio=1.0),
    VisualDependencyCredit(),
    VisualDependencyCredit(anchor_ratio=0.5, rest_weight=0.0),
    VisualDependencyCredit(anchor_mass=0.5, rest_weight=0.0),
    PapoCredit(),
    HiddenCosineCredit(),
    HiddenCosineCredit(gate="entropy", gate_strength=0.5, temperature=0.01),
    HiddenCosineCredit(gate="entropy", weights="anchors", rest_weight=0.0),
    *(
        QueryKeyCosineCredit(smoothing=smoothing, weights=weights, window=4)
        for smoothing in ("window", "cluster", "paragraph", "none")
        for weights in ("load_map", "anchors", "softmax")
    ),
    QueryKeyCosineCredit(reduction="mean", rest_weight=0.0),
    QueryKeyCosineCredit(weights="softmax", rest_weight=0.0, mixing=0.0, temperature=1e-4),
    KawhiCredit(),
    KawhiCredit(head_numbers=(0, 2), reduction="mean"),
    OracleCredit(),
    OracleCredit(rest_weight=0.0),
    ProductCredit(schemes=[AtrlCredit(), EntropyCredit()]),
    ProductCredit(schemes=[AnchorOnlyCredit(), EntropyCredit(within="batch")]),
    ProductCredit(schemes=[VppoCredit(), LowConnectivityCredit(), RandomCredit()]),
    ProductCredit(schemes=[VisualDependencyCredit(), EntropyCredit()]),
    ProductCredit(schemes=[UniformCredit()]),
    ProductCredit(schemes=[HiddenCosineCredit(temperature=0.004), EntropyCredit(ratio=0.05)]),
    ProductCredit(schemes=[KawhiCredit(), EntropyCredit()]),
]


def non_defaults(scheme) -> str:
    """A short name for a test's id."""
    shown = [getattr(scheme, field.name) for field in fields(scheme) if field.repr and field.default is not MISSING]
    defaults = [field.default for field in fields(scheme) if field.repr and field.default is not MISSING]
    options = [value for value, default in zip(shown, defaults, strict=True) if value != default]
    parts = [non_defaults(part) for part in getattr(scheme, "schemes", ())]
    return "-".join([scheme.name, *map(str, options), *parts])


every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=non_defaults)


def assign(scheme, rows=ROWS, **options):
    padding = options.get("padding", 0)
    return scheme.assign(batch_of(rows, padding=padding), evidence_of(scheme, rows, **options))


def tensors_of(found) -> dict[str, torch.Tensor]:
    """What a reader handed over, by name."""
    parts = {"": found} if isinstance(found, torch.Tensor) else {name: getattr(found, name) for name in found.__slots__}
    return {name: part for name, part in parts.items() if isinstance(part, torch.Tensor)}


@every_scheme
def test_weights_are_finite_and_of_mean_one(scheme):
    """Over each response; over the batch, where whole responses may be left out."""
    output, mask = assign(scheme), batch_of(ROWS).response_mask
    weights = output.weights
    assert weights.shape == mask.shape and weights.isfinite().all() and (weights >= 0).all()
    assert (weights[~mask] == 0).all()
    if scheme.normalised_over == "batch":
        assert weights.sum().item() == pytest.approx(mask.sum().item(), rel=1e-6)
    else:
        torch.testing.assert_close(weights.sum(dim=1) / mask.sum(dim=1), torch.ones(len(ROWS)), atol=1e-5, rtol=0)
        assert weights[1, 0].item() == pytest.approx(1.0)  # the response of one token


@every_scheme
def test_where_all_tokens_are_alike_none_stands_out(scheme):
    """Ties would choose the first; a lot and the data choose by something else."""
    if any(isinstance(factor, RandomCredit | OracleCredit) for factor in scheme.factors):
        return
    evidence, mask = evidence_of(scheme, ROWS), batch_of(ROWS).response_mask
    found = [tensor for read in evidence.read.values() for tensor in tensors_of(read).values()]
    for tensor in (evidence.entropy, evidence.masked.divergence, *found):
        if tensor.is_floating_point():
            tensor.fill_(0.3)
    output = scheme.assign(batch_of(ROWS), evidence)
    torch.testing.assert_close(output.weights, mask.float())
    assert output.anchors is None or not output.anchors.any()


@every_scheme
def test_what_it_singles_out_is_trained_and_scores_are_finite(scheme):
    output, mask = assign(scheme), batch_of(ROWS).response_mask
    if output.anchors is not None:
        assert output.anchors.dtype == torch.bool and not output.anchors[~mask].any()
    if output.density is not None:
        assert output.density.isfinite().all() and (output.density[~mask] == 0).all()


@every_scheme
def test_scales_of_rollouts_average_one(scheme):
    """As VPPO has it; they carry no gradient, and are there only where the whole batch is scored at once."""
    scale = assign(scheme).trajectory_scale
    if scale is None:
        return
    assert scheme.scope == "batch" and scale.shape == (len(ROWS),) and not scale.requires_grad
    assert (scale >= 0).all() and scale.mean().item() == pytest.approx(1.0, rel=1e-6)


@every_scheme
def test_weights_carry_no_gradient(scheme):
    evidence = evidence_of(scheme, ROWS)
    evidence.logprobs.requires_grad_()
    evidence.entropy.requires_grad_()
    evidence.masked.logprobs.requires_grad_()
    evidence.masked.divergence.requires_grad_()
    for found in evidence.read.values():
        for tensor in tensors_of(found).values():
            if tensor.is_floating_point():
                tensor.requires_grad_()
    output = scheme.assign(batch_of(ROWS), evidence)
    assert not output.weights.requires_grad
    assert output.density is None or not output.density.requires_grad
    assert output.trajectory_scale is None or not output.trajectory_scale.requires_grad


@every_scheme
def test_weights_are_deterministic_and_change_nothing_else(scheme):
    batch, evidence, untouched = batch_of(ROWS), evidence_of(scheme, ROWS), evidence_of(scheme, ROWS)
    state = torch.get_rng_state()
    first, second = scheme.assign(batch, evidence), scheme.begin(batch, evidence)()
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(evidence.entropy, untouched.entropy)
    assert torch.equal(evidence.masked.divergence, untouched.masked.divergence)
    for request, found in evidence.read.items():
        before = tensors_of(untouched.read[request])
        assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(found).items())


@every_scheme
def test_weights_do_not_depend_on_the_rest_of_the_batch(scheme):
    """Each rollout alone and in twos with more padding."""
    if scheme.scope == "batch":  # it always gets the whole: see the next test
        return
    together, mask = assign(scheme), batch_of(ROWS).response_mask
    for size in (1, 2):
        for start in range(0, len(ROWS), size):
            part = assign(scheme, ROWS[start : start + size], padding=7 * (size - 1))
            for row, (length, _) in enumerate(ROWS[start : start + size], start):
                torch.testing.assert_close(
                    part.weights[row - start, :length], together.weights[row, :length], atol=1e-5, rtol=0
                )
                if together.anchors is not None:
                    assert torch.equal(part.anchors[row - start, :length], together.anchors[row, :length])
    assert mask.sum() == sum(length for length, _ in ROWS)


@every_scheme
@pytest.mark.parametrize("size", [1, 2, 4])
def test_weights_do_not_depend_on_the_micro_batches(scheme, size):
    """As a training step puts them together: what is begun piece by piece, and what needs the whole batch."""
    bound = BoundCredit(scheme, None, PictureScale((0.5,) * 3, (0.5,) * 3), None)
    evidence, begun = [], []
    for start in range(0, len(ROWS), size):
        rows = ROWS[start : start + size]
        evidence.append(evidence_of(scheme, rows))
        begun.append(bound.begin(batch_of(rows), evidence[-1]))
    together, found = assign(scheme), bound.assign(batch_of(ROWS), evidence, begun)
    torch.testing.assert_close(found.weights, together.weights, atol=1e-5, rtol=0)
    for name in ("anchors", "trajectory_scale"):
        expected = getattr(together, name)
        assert (getattr(found, name) is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(getattr(found, name), expected, atol=1e-5, rtol=0)


@every_scheme
def test_weights_do_not_depend_on_the_order_of_the_rows(scheme):
    """In which micro-batches by length, and ranks, put them."""
    order = [3, 0, 5, 2, 4, 1]
    together, turned = assign(scheme), assign(scheme, [ROWS[row] for row in order])
    torch.testing.assert_close(turned.weights, together.weights[order], atol=1e-5, rtol=0)
    if together.anchors is not None:
        assert torch.equal(turned.anchors, together.anchors[order])


@every_scheme
@pytest.mark.parametrize("filler", [float("nan"), 1e6])
def test_padding_has_no_effect(scheme, filler):
    clean, dirty = assign(scheme), assign(scheme, filler=filler)
    assert torch.equal(clean.weights, dirty.weights)
    for name in ("anchors", "density", "trajectory_scale"):
        if getattr(clean, name) is not None:
            assert torch.equal(getattr(clean, name), getattr(dirty, name)), name


@every_scheme
def test_a_batch_without_pictures_is_weighed_finitely(scheme):
    """Evenly, by the schemes that go by the picture."""
    rows = [(17, 0), (3, 0), (1, 0)]
    output = assign(scheme, rows)
    assert output.weights.isfinite().all()
    if scheme.name not in ("random", "entropy", "product"):
        assert torch.equal(output.weights, batch_of(rows).response_mask.float())
        assert output.anchors is None or not output.anchors.any()


@every_scheme
def test_a_response_without_trained_tokens_gets_nothing(scheme):
    """Neither a weight nor, by its empty statistics, a share in anyone else's."""
    batch = batch_of(ROWS)
    mask = batch.response_mask.clone()
    mask[0] = False
    output = scheme.assign(replace(batch, response_mask=mask), evidence_of(scheme, ROWS))
    assert output.weights.isfinite().all() and (output.weights[0] == 0).all()
    trained = output.weights[1:].sum().item()
    assert trained == pytest.approx(mask.sum().item(), rel=1e-5)


def defaults(path: Path) -> tuple[type, dict]:
    from hydra.utils import get_class
    from omegaconf import OmegaConf

    node = OmegaConf.to_container(OmegaConf.load(path))
    return get_class(node.pop("_target_")), node


YAMLS = sorted(path for path in CONF.glob("*.yaml") if path.stem not in ("none", "entropy_atrl"))


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_the_yaml_gives_every_option_its_default(path):
    """AT-RL's leaves out the options that choose what is read; the others name all."""
    scheme, options = defaults(path)
    expected = {field.name: field.default for field in fields(scheme) if field.init}
    assert scheme.name == path.stem
    assert {name: expected[name] for name in options} == options
    assert scheme.name == "atrl" or options.keys() == expected.keys()


def test_every_scheme_is_tested_here():
    names = {scheme.name for scheme in SCHEMES}
    assert {path.stem for path in YAMLS} | {"product"} == names


def test_the_product_of_the_yaml_is_one_of_atrl_and_entropy():
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    scheme = instantiate(OmegaConf.load(CONF / "entropy_atrl.yaml"))
    assert scheme == ProductCredit(schemes=(AtrlCredit(), EntropyCredit()))
    assert isinstance(hash(scheme), int) and scheme.requests == AtrlCredit().requests
