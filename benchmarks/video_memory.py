"""Peak memory of a training step on videos, by number of frames.

    python benchmarks/video_memory.py [--model tiny] [--frames 16 32 64] [--rollouts 8] [--tokens 64] [--credit]
                                      [--checkpointing]

Each number of frames has a process of its own: one video of as many frames, `rollouts` responses to it as one
micro-batch, forward and backward pass with the policy's loss and one AdamW step, with `--credit` also the probe that
`credit=atrl` reads with, with `--checkpointing` activations computed again. The peak is that of torch's allocator on a
GPU, of the process on the CPU; `step_bytes` leaves out what was held before the step. A step that finds no room on the
GPU is said to be `out_of_memory`. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from device import held_bytes, peak_bytes


def main() -> None:
    """One process for each number of frames, then a line for all."""
    arguments = parse()
    if arguments.one is not None:
        print(json.dumps(measured(arguments, arguments.one)))
        return
    results = []
    for frames in arguments.frames:
        command = [sys.executable, __file__, "--one", str(frames), *sys.argv[1:]]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(results[-1], flush=True)
    asked = {name: getattr(arguments, name) for name in ("model", "rollouts", "credit", "checkpointing")}
    print(json.dumps(asked | {"response_tokens": arguments.tokens, "steps": results}))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a checkpoint's folder or name (default tiny)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of its weights")
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 32, 64], help="of a video (default 16 32 64)")
    parser.add_argument("--side", type=int, default=112, help="pixels of a frame's side, before the processor's limits")
    parser.add_argument("--rollouts", type=int, default=8, help="responses in the micro-batch (default 8)")
    parser.add_argument("--tokens", type=int, default=64, help="of each response (default 64)")
    parser.add_argument("--credit", action="store_true", help="with the attention probe of credit=atrl")
    parser.add_argument("--checkpointing", action="store_true", help="as trainer.activation_checkpointing=true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(arguments: argparse.Namespace, frames: int) -> dict[str, int | bool]:
    """`measure`, or that there is no room: the other numbers of frames still have an answer then."""
    import torch

    try:
        return measure(arguments, frames)
    except torch.OutOfMemoryError:
        return {"frames": frames, "out_of_memory": True}


def measure(arguments: argparse.Namespace, frames: int) -> dict[str, int | bool]:
    """Bytes of one step on a video of so many frames, in this process."""
    import torch

    from atrl.credit.atrl import AtrlCredit
    from atrl.credit.probe import AttentionProbe
    from atrl.forward import ForwardPass
    from atrl.models.load import PretrainedModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = PretrainedModel(path=arguments.model, dtype=arguments.dtype).load(Path())
    model = loaded.model.to(device)
    if arguments.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch, video_tokens = experience(loaded, frames, arguments, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    probe = AttentionProbe(model, AtrlCredit().requests) if arguments.credit else None
    before = held_bytes(device)
    logprobs, recorder = None, None
    if probe is None:
        logprobs, _ = ForwardPass(temperature=1.0, banned_ids=()).logprobs(model, batch)
    else:
        with probe.capture(batch) as recorder:
            logprobs, _ = ForwardPass(temperature=1.0, banned_ids=()).logprobs(model, batch)
        recorder.results()
    (-logprobs[batch.response_mask].mean()).backward()
    optimizer.step()
    return {
        "frames": frames,
        "video_tokens": video_tokens,
        "row_tokens": batch.input_ids.shape[1],
        "pixel_bytes": sum(tensor.nbytes for tensor in batch.pixels[0].values()),
        "step_bytes": peak_bytes(device) - before,
        "peak_bytes": peak_bytes(device),
    }


def experience(loaded, frames: int, arguments: argparse.Namespace, device: str):
    """One video with as many different frames, and random responses to it; and how many video tokens that is."""
    import torch
    from PIL import Image

    from atrl.data.frames import FrameSampler
    from atrl.data.prompts import PromptBuilder
    from atrl.experience import build_experience
    from atrl.types import Problem, Rollout, RolloutGroup, Video

    picture = Image.linear_gradient("L").resize((arguments.side,) * 2).convert("RGB")
    video = Video(tuple(picture.rotate(5 * index) for index in range(frames)), fps=2.0)
    builder = PromptBuilder(processor=loaded.processor, frames=FrameSampler(count=frames))
    prompt = builder.build(Problem("video", "<video>Which way does it turn?", "left", videos=(video,)))
    ids = torch.randint(0, 256, (arguments.rollouts, arguments.tokens), generator=torch.Generator().manual_seed(0))
    rollouts = [Rollout(row, [0.0] * len(row), True) for row in ids.tolist()]
    group = RolloutGroup(prompt, rollouts, [""] * len(rollouts), policy_version=0)
    return build_experience([group], pad_id=0, device=device), prompt.token_ids.count(loaded.processor.video_token_id)


if __name__ == "__main__":
    main()
