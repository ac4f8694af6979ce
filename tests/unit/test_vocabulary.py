"""Log-probs, entropy and divergence from the head's input, against the same from whole logits by plain autograd."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from atrl.forward import ForwardPass
from atrl.logprobs import process_logits
from atrl.models.head import plain_head
from atrl.models.policy import response_logits
from atrl.types import KeptTokens
from atrl.vocabulary import TokenDistributions, token_divergences, token_scores
from tests.unit.live_bytes import LiveBytes

TOKENS, WIDTH, VOCABULARY = 7, 3, 11
IDS = torch.tensor([1, 4, 0, 10, 6, 6, 2])
KEPT = KeptTokens(
    torch.tensor([1, 2, 4, 0, 5, 6, 10, 6, 6, 7, 8, 9, 2, 3]), torch.tensor([2, 1, 1, 3, 1, 4, 2], dtype=torch.int32)
)
CASES = {
    "plain": {"temperature": 1.0},
    "temperature": {"temperature": 0.7},
    "banned": {"temperature": 1.3, "banned_ids": (3, 5)},
    "kept": {"temperature": 0.7, "banned_ids": (3,), "kept": KEPT},
}
CHUNKS = [None, 1, 3, 7, 100]


def head_input(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((TOKENS, WIDTH), (VOCABULARY, WIDTH))
    rows, weight = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return rows.requires_grad_(), weight.requires_grad_()


def from_whole_logits(rows, weight, temperature, banned_ids=(), kept=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of IDS, written out token by token."""
    logits = (rows @ weight.T).to(torch.promote_types(rows.dtype, torch.float32)) / temperature
    sets = None if kept is None else kept.ids.split(kept.counts.tolist())
    logprobs, entropies = [], []
    for row, token in enumerate(IDS.tolist()):
        possible = range(VOCABULARY) if sets is None else sets[row].tolist()
        possible = [other for other in possible if other not in banned_ids]
        distribution = logits[row, possible].log_softmax(0)
        logprobs.append(distribution[possible.index(token)])
        entropies.append(-(distribution.exp() * distribution).sum())
    return torch.stack(logprobs), torch.stack(entropies)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_whole_logits(case: str, chunk: int | None) -> None:
    rows, weight = head_input()
    upstream = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    expected, expected_entropy = from_whole_logits(rows, weight, **CASES[case])
    gradients = torch.autograd.grad((expected * upstream).sum(), (rows, weight))
    found, entropy = token_scores(rows, weight, IDS, TokenDistributions(**CASES[case], chunk=chunk))
    assert not entropy.requires_grad
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    for one, other in zip(torch.autograd.grad((found * upstream).sum(), (rows, weight)), gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_finite_differences(case: str, chunk: int | None) -> None:
    distributions = TokenDistributions(**CASES[case], chunk=chunk)
    assert torch.autograd.gradcheck(lambda rows, weight: token_scores(rows, weight, IDS, distributions), head_input())
    logits = torch.randn(TOKENS, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(
        lambda logits: token_scores(logits, None, IDS, distributions), logits.requires_grad_()
    )


@pytest.mark.parametrize("frozen", ["rows", "weight"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    """As the rows of a frozen body, or the weight of a frozen head."""
    rows, weight = head_input()
    whole, chunked = (TokenDistributions(temperature=0.7, chunk=chunk) for chunk in (None, 3))
    expected = torch.autograd.grad(token_scores(rows, weight, IDS, whole)[0].sum(), (rows, weight))
    tensors = {"rows": rows, "weight": weight}
    tensors[frozen].requires_grad_(False)
    token_scores(rows, weight, IDS, chunked)[0].sum().backward()
    assert tensors.pop(frozen).grad is None
    ((name, trained),) = tensors.items()
    torch.testing.assert_close(trained.grad, expected[["rows", "weight"].index(name)])


@pytest.mark.parametrize("chunk", CHUNKS)
def test_half_precision_rows_have_float32_log_probs(chunk: int | None) -> None:
    """The product is in 16 bits, as the model's own head takes it, and what follows in 32."""
    rows, weight = head_input(torch.bfloat16)
    expected, _ = from_whole_logits(rows, weight, 0.7)
    gradients = torch.autograd.grad(expected.sum(), (rows, weight))
    found, entropy = token_scores(rows, weight, IDS, TokenDistributions(temperature=0.7, chunk=chunk))
    assert found.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(torch.autograd.grad(found.sum(), (rows, weight)), gradients, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, other, rtol=2**-6, atol=2**-7)  # a few roundings to 8 bits


@pytest.mark.parametrize("chunk", CHUNKS)
def test_autocast_takes_the_product_as_a_linear_layer_does(chunk: int | None) -> None:
    rows, weight = head_input(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.nn.functional.linear(rows, weight)
        expected = logits.float().log_softmax(-1).gather(1, IDS[:, None])[:, 0]
        found, _ = token_scores(rows, weight, IDS, TokenDistributions(temperature=1.0, chunk=chunk))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert float((found - from_whole_logits(rows, weight, 1.0)[0]).detach().abs().max()) > 1e-4
    gradients = torch.autograd.grad(expected.sum(), (rows, weight))
    for one, other in zip(torch.autograd.grad(found.sum(), (rows, weight)), gradients, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2**-6, atol=2**-7)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("case", CASES)
def test_divergence_is_that_of_whole_distributions(case: str, chunk: int | None) -> None:
    rows, weight = head_input()
    others = rows.detach().flip(0)
    whole = TokenDistributions(**CASES[case])
    p, q = (whole.log(part, weight, slice(0, TOKENS)).exp() for part in (rows, others))
    ratio = torch.where(p > 0, p / q, 1.0)
    found = token_divergences(rows, others, weight, replace(whole, chunk=chunk))
    torch.testing.assert_close(found, (p * ratio.log()).sum(-1))
    assert not found.requires_grad and float(found.min()) >= 0 and float(found.max()) > 0.1


def peak_bytes(chunk: int | None, tokens: int, width: int, vocabulary: int) -> int:
    """The most bytes that a forward and backward pass holds beyond its input."""
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(size, width, generator=generator).requires_grad_() for size in (tokens, vocabulary))
    ids = torch.randint(0, vocabulary, (tokens,), generator=generator)
    with LiveBytes([rows, weight, ids]) as live:
        start = live.now
        distributions = TokenDistributions(temperature=0.7, banned_ids=(3, 5), chunk=chunk)
        token_scores(rows, weight, ids, distributions)[0].sum().backward()
    return live.peak - start


def test_no_more_than_a_chunk_of_logits_exists() -> None:
    """Two buffers of it, as logits and the same over the temperature. Beside them only the gradients.

    Whole logits take the probabilities of all tokens, and their gradient once more.
    """
    tokens, width, vocabulary, chunk = 96, 8, 3000, 6
    logits, gradients = 4 * tokens * vocabulary, 4 * width * (tokens + vocabulary)
    per_token = 64 * tokens
    assert peak_bytes(chunk, tokens, width, vocabulary) <= 2 * logits * chunk / tokens + gradients + per_token
    assert peak_bytes(None, tokens, width, vocabulary) >= 2 * logits


PASS = ForwardPass(temperature=0.7, banned_ids=(3, 5))


def gradients_of(policy, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*policy.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def with_head_of_its_own(policy):
    own = copy.deepcopy(policy)
    own.config.tie_word_embeddings = own.config.text_config.tie_word_embeddings = False
    own.lm_head.weight = torch.nn.Parameter(own.lm_head.weight.detach().flip(0).clone())
    return own


@pytest.mark.parametrize("chunk", [None, 1, 4, 1000])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_says_the_same_as_by_its_logits(policy, batch, tied: bool, chunk: int | None) -> None:
    model = policy if tied else with_head_of_its_own(policy)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert plain_head(model) is model.lm_head
    mask = batch.response_mask
    distribution = process_logits(response_logits(model, batch), temperature=0.7, banned_ids=(3, 5)).log_softmax(-1)
    ids = batch.input_ids[:, batch.prompt_length :]
    expected = torch.where(mask, distribution.gather(-1, ids[..., None])[..., 0], 0.0)
    weights = torch.linspace(-1, 2, mask.numel()).view(mask.shape)
    wanted = gradients_of(model, (expected.masked_fill(~expected.isfinite(), 0.0) * weights).sum())
    found, entropy = replace(PASS, chunk=chunk).logprobs(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    probabilities = distribution.exp()
    torch.testing.assert_close(
        entropy, torch.where(mask, torch.special.entr(probabilities).sum(-1), 0.0), rtol=1e-5, atol=1e-5
    )
    gradients = gradients_of(model, (found.masked_fill(~found.isfinite(), 0.0) * weights).sum())
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5 * scale)
    assert "forward" not in vars(model.lm_head)


def test_the_head_sees_trained_tokens_alone(policy, batch) -> None:
    scores = PASS.scores(policy, batch)
    assert scores.rows.shape == (int(batch.response_mask.sum()), policy.config.text_config.hidden_size)
    assert not scores.rows.requires_grad


@pytest.mark.parametrize("setting", ["final_logit_softcapping", "logit_scale"])
def test_a_model_that_changes_its_logits_keeps_them_whole(policy, batch, monkeypatch, setting: str) -> None:
    """As Gemma 2 does: 5·tanh(logits / 5). The log-probs are then of what the model itself returns."""
    capped = copy.deepcopy(policy)
    setattr(capped.config.text_config, setting, 5.0)
    original = type(capped).forward

    def forward(model, *args, **kwargs):
        output = original(model, *args, **kwargs)
        output.logits = 5.0 * torch.tanh(output.logits / 5.0)
        return output

    monkeypatch.setattr(type(capped), "forward", forward)
    assert plain_head(capped) is None
    logits = process_logits(response_logits(capped, batch), temperature=0.7, banned_ids=(3, 5))
    ids = batch.input_ids[:, batch.prompt_length :]
    expected = torch.where(batch.response_mask, logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0], 0.0)
    torch.testing.assert_close(replace(PASS, chunk=4).logprobs(capped, batch)[0], expected)


def test_a_head_that_is_more_than_a_product_is_left_alone(policy) -> None:
    """Adapters wrap it, and a bias is added."""
    model = copy.deepcopy(policy)
    plain = model.lm_head
    model.lm_head = torch.nn.Sequential(plain)
    assert plain_head(model) is None
    model.lm_head = torch.nn.Linear(plain.in_features, plain.out_features, bias=True)
    assert plain_head(model) is None
