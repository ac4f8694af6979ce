"""The probe over kernels that need other hardware: flash attention by a stand-in, flex_attention without gradients."""

from __future__ import annotations

import copy
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from transformers import PreTrainedModel
from transformers import modeling_flash_attention_utils as flash_utils

from atrl.credit.probe import AttentionProbe
from atrl.models.attention import check_flex, set_text_attention
from atrl.models.load import PretrainedModel
from atrl.models.policy import response_logits
from tests.unit.attention import FULL, assert_agrees, assert_close, eager_attention, read
from tests.unit.test_probe_families import IMAGE, gemma3, llava_mistral, regions_of


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
    """[row column head width], as the package's."""
    query, key, value = (states.transpose(1, 2) for states in (q, k, v))
    options = {"scale": softmax_scale, "is_causal": causal, "enable_gqa": True}
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, **options).transpose(1, 2)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1),
):  # fmt: skip
    """[token head width], one sequence behind the other."""
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    parts = [slice(*pair) for pair in zip(cu_seqlens_q.tolist(), cu_seqlens_q.tolist()[1:], strict=False)]
    options = {"softmax_scale": softmax_scale, "causal": causal}
    return torch.cat([flash_attn_func(*(states[None, part] for states in (q, k, v)), **options)[0] for part in parts])


@pytest.fixture
def flash_3(monkeypatch):
    """FlashAttention 3's package, whose functions know of no dropout, as far as transformers uses it here."""

    def function(q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1)):
        return flash_attn_func(q, k, v, softmax_scale=softmax_scale, causal=causal)

    def varlen(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False,
        window_size=(-1, -1),
    ):  # fmt: skip
        places = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return flash_attn_varlen_func(q, k, v, *places, softmax_scale=softmax_scale, causal=causal)

    package = ModuleType("flash_attn_interface")
    package.flash_attn_func, package.flash_attn_varlen_func = function, varlen
    package.flash_attn_with_kvcache, package.__spec__ = None, ModuleSpec("flash_attn_interface", None)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", package)
    monkeypatch.setattr(flash_utils, "is_flash_attn_3_available", lambda: True)
    monkeypatch.setattr(flash_utils, "_loaded_implementation", None)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *arguments, **options: True)  # needs a GPU


@pytest.fixture
def flash(monkeypatch):
    """The package flash-attn as far as transformers uses it here."""
    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    package.flash_attn_func, package.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    package.flash_attn_with_kvcache, package.__spec__ = None, ModuleSpec("flash_attn", None)
    padding.pad_input, padding.unpad_input = flash_utils._pad_input, flash_utils._unpad_input
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(flash_utils, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(flash_utils, "_loaded_implementation", None)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *arguments, **options: True)  # needs a GPU


@pytest.fixture(params=["flash_attention_2", "flash_attention_3"])
def flash_policy(policy, request):
    """Its language half by flash attention."""
    request.getfixturevalue({"flash_attention_2": "flash", "flash_attention_3": "flash_3"}[request.param])
    changed = copy.deepcopy(policy)
    set_text_attention(changed, request.param)
    return changed


@pytest.mark.parametrize("gradients", [False, True], ids=["scored", "trained"])
def test_flash_attention_runs_as_without_the_probe_and_is_read(flash_policy, policy, batch, gradients):
    """It finds its own functions by the name of the kernel in the layers' configuration, where the probe's name is."""
    kernel = flash_policy.config.text_config._attn_implementation
    with torch.set_grad_enabled(gradients):
        plain = response_logits(flash_policy, batch)
        probe = AttentionProbe(flash_policy, [FULL])
        idle = response_logits(flash_policy, batch)
        with probe.capture(batch) as recorder:
            captured = response_logits(flash_policy, batch)
    assert torch.equal(plain, idle) and torch.equal(plain, captured)
    assert_agrees(recorder.results()[FULL], eager_attention(policy, batch), policy, batch)
    probe.detach()
    assert flash_policy.config.text_config._attn_implementation == kernel


def test_the_layers_configuration_stays_as_it_is(policy, batch):
    layer = next(part for part in policy.modules() if type(part).__name__ == "Qwen2_5_VLAttention")
    read(policy, batch)
    assert layer.config is policy.config.text_config and layer.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", [llava_mistral, gemma3])
def test_flex_attention_is_read_as_well(family):
    """On a CPU it has no gradients; uncompiled, since that needs a C++ compiler and can fail in torch's own code."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = family()
        for parameter in model.parameters():
            parameter.data.mul_(2)
    model.eval()
    check = copy.deepcopy(model)
    check.set_attn_implementation("eager")
    model.set_attn_implementation({"text_config": "flex_attention"})
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][0, :3] = 0
    regions = regions_of(inputs)
    probe = AttentionProbe(model, [FULL])
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        attention = torch.stack(check(**inputs, output_attentions=True).attentions, dim=1)
        with probe.capture_regions({"predicting": regions}) as recorder:
            logits = model(**inputs).logits
        probe.detach()
        assert model.config.text_config._attn_implementation == "flex_attention"
        assert torch.equal(logits, model(**inputs).logits)
    mass = recorder.results()[FULL].mass
    for row in range(2):
        columns = (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0]
        assert_close(mass[row, ..., : len(columns)], attention[row][:, :, regions.rows[row]][..., columns])


def test_flex_attention_is_refused_where_it_can_t_train(policy):
    with pytest.raises(ValueError, match=r"^model\.attention=flex_attention is not known to transformers' Qwen2_5_VL"):
        PretrainedModel(attention="flex_attention").check()
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="gradients on a GPU only"):
            check_flex(llava_mistral()[0])
