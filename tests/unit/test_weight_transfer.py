"""What is written for a server, how the server's command looks, and what travels to it as a picture."""

from __future__ import annotations

import base64
import importlib.util
import json
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from atrl.models.load import BUNDLED
from atrl.rollout import serve
from atrl.rollout.weight_transfer import NcclBroadcast, SharedFolder, model_shape, write_weights
from atrl.rollout.wire import data_url
from atrl.weight_sync import ParameterForm

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


def parameters() -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in [(3, 2), (4,), (2, 2), (5,)]]
    return [(f"layer.{number}", torch.nn.Parameter(tensor)) for number, tensor in enumerate(tensors)]


def forms(held: list[tuple[str, torch.Tensor]]) -> list[ParameterForm]:
    return [ParameterForm(name, tensor.dtype, tensor.shape) for name, tensor in held]


class Listener:
    """Stands for a connection: keeps what the folder held when the server was told of it."""

    def __init__(self, answer: dict) -> None:
        self.url, self.answer = "http://host:8000", answer
        self.calls: list[dict] = []
        self.seen: dict[str, torch.Tensor] = {}

    def post(self, path: str, body: dict) -> dict:
        assert path == "/collective_rpc"
        self.calls.append(body)
        for file in Path(body["kwargs"]["folder"]).iterdir():
            self.seen |= load_file(file)
        return self.answer


def test_shards_hold_every_tensor_once_in_the_servers_dtype(tmp_path: Path) -> None:
    """In bfloat16 6, 4, 4 and 5 numbers are 12, 8, 8 and 10 bytes; a shard is closed at 16: 20 and 18 bytes."""
    write_weights(iter(parameters()), tmp_path, dtype="bfloat16", shard_bytes=16)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["weights-00000.safetensors", "weights-00001.safetensors"]
    shards = [load_file(file) for file in files]
    assert [sorted(shard) for shard in shards] == [["layer.0", "layer.1"], ["layer.2", "layer.3"]]
    for name, parameter in parameters():
        assert torch.equal((shards[0] | shards[1])[name], parameter.detach().to(torch.bfloat16))


def test_no_parameters_write_no_file(tmp_path: Path) -> None:
    write_weights([], tmp_path, dtype="float32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("own", [True, False])
def test_the_server_is_told_of_a_complete_folder_which_is_gone_afterwards(tmp_path: Path, own: bool) -> None:
    transfer = SharedFolder(str(tmp_path) if own else None)
    listener = Listener({"results": [{"loaded": 4}, {"loaded": 4}]})
    for _ in range(2):
        transfer.send(iter(parameters()), listener, "float32")
    assert all(torch.equal(listener.seen[name], parameter.detach()) for name, parameter in parameters())
    folders = [Path(call["kwargs"]["folder"]) for call in listener.calls]
    assert folders[0] != folders[1] and all(folder.is_absolute() and not folder.exists() for folder in folders)
    assert all(call["method"] == "atrl_load_weights" for call in listener.calls)
    transfer.close()
    assert list(tmp_path.iterdir()) == [] and tmp_path.exists()
    assert own or not folders[0].parents[1].exists()


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ({"results": [{"loaded": 4}, {"error": "KeyError: 'x'"}]}, "KeyError: 'x'"),
        ({"results": []}, "no worker answered"),
        (None, "no worker answered"),
    ],
)
def test_a_server_that_did_not_take_the_weights_is_named(tmp_path: Path, answer, cause: str) -> None:
    with pytest.raises(ValueError) as error:
        SharedFolder(str(tmp_path)).send(parameters(), Listener(answer), "float32")
    assert str(error.value).startswith(f"rollout=server: http://host:8000 did not take the new weights ({cause}): ")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_or_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"rollout.sampler.weights_folder /no/such/place is not a folder"):
        SharedFolder("/no/such/place")
    transfer = SharedFolder(str(tmp_path))

    def full(*arguments) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(ValueError, match=r"can't be written to \(.*No space left on device\): make room"):
        transfer.send(parameters(), Listener({"results": [{"loaded": 4}]}), "float32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_nccl_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight_transfer=nccl needs a CUDA device .* use weight_transfer=folder"):
        NcclBroadcast(forms(parameters())).send(parameters(), Listener({}), "float32")


@needs_vllm
def test_what_nccl_sends_is_declared_as_it_is_iterated() -> None:
    """vLLM sizes the receiving buffers by the one and sends by the other; the group is the trainer and the workers.

    What is sent is on the device that broadcasts, wherever the policy is; a second update sends its own.
    """
    from atrl.rollout.vllm_nccl import ParameterSource, trainer_init_info

    source = ParameterSource(forms(parameters()), device="meta")
    declared = [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()]
    for _ in range(2):
        source.replace(parameters())
        sent = list(source)
        assert declared == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in sent]
        assert all(tensor.device.type == "meta" for _, tensor in sent) and list(source) == []
    info = trainer_init_info("10.0.0.1", 1234, workers=4)
    assert (info.world_size, info.rank, info.is_sender, info.backend) == (5, 0, True, "nccl")


class Workers:
    """Stand for vLLM's workers behind its trainer's engine: what they were told, and what they then received."""

    def __init__(self, put_together: list[str]) -> None:
        self.put_together = put_together
        self.told: list[str] = []
        self.received: list[torch.Tensor] = []

    def start_weight_update(self) -> None:
        self.told.append("start")

    def update_weights(self, info: dict) -> None:
        self.told += info["names"]

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.told.append("finish")

    def broadcast(self, tensor: torch.Tensor, src: int, stream) -> None:
        self.received.append(tensor.clone())
        assert len(self.put_together) == len(self.received), "more was put together than was sent"


@needs_vllm
def test_nccl_puts_parameters_together_as_it_sends_them(monkeypatch) -> None:
    """Of a divided policy all of them would be a copy of the whole. By vLLM's own engine, which checks what it is
    given against what was declared; only the group of GPUs is replaced."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    from atrl.rollout.vllm_nccl import ParameterSource

    put_together: list[str] = []
    workers = Workers(put_together)

    def one_by_one(held):
        for name, tensor in held:
            put_together.append(name)
            yield name, tensor.detach()

    def connect(transfer, server):
        transfer._source = ParameterSource(transfer._forms, device="cpu")
        engine = NCCLTrainerWeightTransferEngine(client=workers, source=transfer._source, packed=False)
        engine.model_update_group = workers
        return engine

    monkeypatch.setattr(NcclBroadcast, "_connect", connect)
    stream = SimpleNamespace(synchronize=lambda: workers.told.append("wait"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    first, second = parameters(), [(name, tensor.detach() + 1) for name, tensor in parameters()]
    transfer = NcclBroadcast(forms(first))
    for sent in (first, second):
        transfer.send(one_by_one(sent), Listener({}), "float32")
        # First for the optimizer's step, last for what was sent.
        assert workers.told == ["wait", "start", *(name for name, _ in sent), "finish", "wait"]
        assert all(torch.equal(got, tensor) for got, (_, tensor) in zip(workers.received, sent, strict=True))
        for kept in (workers.told, workers.received, put_together):
            kept.clear()
    with pytest.raises(ValueError, match=r"did not reach http://host:8000 over NCCL .*layer\.9"):
        transfer.send(one_by_one([*first[:3], ("layer.9", first[3][1])]), Listener({}), "float32")


def test_a_picture_keeps_its_pixels_and_nothing_else() -> None:
    picture = Image.linear_gradient("L").resize((30, 20)).convert("RGB")
    picture.putpixel((3, 4), (1, 2, 3))
    picture.info |= {"icc_profile": b"a profile", "transparency": (1, 2, 3)}  # the server would lay that pixel on white
    kind, _, data = data_url(picture).partition(",")
    decoded = Image.open(BytesIO(base64.b64decode(data)))
    assert kind == "data:image/png;base64" and decoded.format == "PNG"
    assert decoded.tobytes() == picture.tobytes() and not decoded.info


def test_model_shapes_tell_models_apart() -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(BUNDLED["tiny"])
    text = config.text_config
    assert model_shape(config) == {
        "model_type": "qwen2_5_vl", "hidden_size": text.hidden_size, "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads, "vocab_size": text.vocab_size,
    }  # fmt: skip


def command(*arguments: str, cpu: bool = True) -> list[str]:
    options, more = serve.parser().parse_known_args(arguments)
    return serve.server_command(options, more, cpu=cpu)


def test_the_servers_command() -> None:
    made = command("tiny", "--max-model-len", "9000", "--max-images", "3", "--tensor-parallel-size", "2")
    assert str(BUNDLED["tiny"]) in made and made[-2:] == ["--tensor-parallel-size", "2"]
    assert made[made.index("--host") + 1] == "127.0.0.1"  # whoever reaches it commands it
    assert made[made.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert json.loads(made[made.index("--limit-mm-per-prompt") + 1]) == {"image": 3, "video": 0}
    assert made[made.index("--max-num-batched-tokens") + 1] == "9000"
    on_gpu = command("tiny", cpu=False)
    assert not {"--max-num-batched-tokens", "--no-enable-chunked-prefill", "--block-size"} & set(on_gpu)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["tiny", "--api-key", "k3y"],
            "error: --api-key would show the key to everyone: set VLLM_API_KEY",
        ),
        (["tiny", "--api-key=k3y"], "error: --api-key would show the key to everyone: set VLLM_API_KEY"),
        (["tinny"], "error: there is no checkpoint 'tinny'"),
    ],
)
@needs_vllm
def test_what_can_not_be_served_is_said(capsys: pytest.CaptureFixture, arguments: list[str], message: str) -> None:
    assert serve.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(message) and "k3y" not in shown.out + shown.err
