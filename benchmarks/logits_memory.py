"""Peak memory of log-probs and entropy at a large vocabulary, forward and backward: whole logits against chunks.

    python benchmarks/logits_memory.py [--vocabulary 151936] [--width 896] [--tokens 1024] [--chunks 512 256 128]

Each case has a process of its own: random input rows of the vocabulary head, its weight, log-probs of random tokens
with their entropies, and the gradients of both. `autograd` takes them from whole logits by torch's own operations,
`whole` is optimizer.logit_chunk_tokens=null, and a number is that setting. The peak is less what was held before: on a
GPU the allocator's, and seconds are the least of five passes after one that doesn't count; on the CPU the process's, of
one pass. Differences are the largest of any log-prob and of any gradient, from `autograd`, relative to the largest. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from operator import itemgetter
from pathlib import Path

from device import held_bytes, peak_bytes, wait_for_device

GPU_PASSES = 5


def main() -> None:
    """One process for each case, then a line for all."""
    arguments = parse()
    if arguments.case is not None:
        print(json.dumps(measure(arguments)))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case in ("autograd", "whole", *map(str, arguments.chunks)):
            command = [sys.executable, __file__, *sys.argv[1:], "--case", case, "--folder", folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(results[-1], flush=True)
    shape = {name: getattr(arguments, name) for name in ("vocabulary", "width", "tokens", "dtype")}
    print(json.dumps(shape | {"logits_bytes": 4 * arguments.tokens * arguments.vocabulary, "cases": results}))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151936, help="default 151936, Qwen's")
    parser.add_argument("--width", type=int, default=896, help="of the head's input (default 896)")
    parser.add_argument("--tokens", type=int, default=1024, help="of a micro-batch's responses (default 1024)")
    parser.add_argument("--chunks", type=int, nargs="*", default=[512, 256, 128], help="default 512 256 128")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of rows and weight")
    parser.add_argument("--threads", type=int, help="torch threads (default: what OMP_NUM_THREADS gives)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Bytes and seconds of one case, in this process."""
    import torch
    from safetensors.torch import load_file, save_file

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, arguments.dtype)
    generator = torch.Generator().manual_seed(0)
    scale = arguments.width**-0.25  # logits then have a deviation of 1
    rows, weight = (  # filled in place: what is made on the way would count as held before
        torch.empty(size, arguments.width, dtype=dtype).normal_(0, scale, generator=generator).to(device)
        for size in (arguments.tokens, arguments.vocabulary)
    )
    rows.requires_grad_(), weight.requires_grad_()
    ids = torch.randint(arguments.vocabulary, (arguments.tokens,), generator=generator).to(device)
    upstream = torch.randn(arguments.tokens, generator=generator).to(device)

    def one_pass() -> tuple[float, int, torch.Tensor]:
        rows.grad = weight.grad = None
        wait_for_device()
        before, start = held_bytes(device), time.perf_counter()
        logprobs, _ = scores(arguments.case, rows, weight, ids)
        (logprobs * upstream).sum().backward()
        wait_for_device()
        return time.perf_counter() - start, peak_bytes(device) - before, logprobs.detach()

    if device == "cuda":
        one_pass()  # loads kernels, and takes the workspaces that stay
    passes = [one_pass() for _ in range(GPU_PASSES if device == "cuda" else 1)]
    seconds, taken, logprobs = min(passes, key=itemgetter(0))
    found = {"logprobs": logprobs.float(), "rows": rows.grad.float(), "weight": weight.grad[:1000].float()}
    expected = arguments.folder / "expected.safetensors"
    if arguments.case == "autograd":
        save_file(found, expected)
    differences = {
        f"{name}_difference": float((found[name].cpu() - value).abs().max() / value.abs().max())
        for name, value in load_file(expected).items()
    }
    return {"case": arguments.case, "bytes": taken, "seconds": round(seconds, 4), **differences}


def scores(case: str, rows, weight, ids):
    """Log-probs of `ids` and entropies of their distributions."""
    import torch

    from atrl.vocabulary import TokenDistributions, token_scores

    if case != "autograd":
        chunk = None if case == "whole" else int(case)
        return token_scores(rows, weight, ids, TokenDistributions(temperature=1.0, chunk=chunk))
    logits = torch.nn.functional.linear(rows, weight).float()
    logprobs = logits.gather(-1, ids[:, None]).squeeze(-1) - logits.logsumexp(-1)
    with torch.no_grad():
        distribution = logits.log_softmax(-1)
        return logprobs, -(distribution.exp() * distribution).sum(-1)


if __name__ == "__main__":
    main()
