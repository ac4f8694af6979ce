"""Accounts: W&B and the Hugging Face hub. Nothing of a key is ever shown, and the network is left alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from atrl.doctor.finding import Finding, note, ok


def wandb(logged_in: Callable[[], bool] | None = None, environment: Mapping[str, str] = os.environ) -> Finding:
    """Where runs are logged to with the default logger."""
    mode = environment.get("WANDB_MODE")
    if mode:
        says = f"WANDB_MODE={mode} stands in the environment"
        return ok("W&B", says) if mode == "online" else note("W&B", says, "unset WANDB_MODE to log online")
    if logged_in is None:
        from atrl.tracking import logged_in
    if logged_in():
        return ok("W&B", "logged in: runs are logged online, offline with logger.wandb.mode=offline")
    remedy = "`wandb login` for online runs (`wandb sync` uploads old ones); logger=csv leaves W&B out"
    return note("W&B", "not logged in: runs are logged offline", remedy)


def hub(token: str | None = None, environment: Mapping[str, str] = os.environ) -> Finding:
    """Which models and data sets can be had from the hub."""
    from huggingface_hub import get_token

    if environment.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "true", "yes"):
        return note("HF hub", "HF_HUB_OFFLINE: what is in the cache alone", "unset HF_HUB_OFFLINE to download")
    if token or get_token():
        return ok("HF hub", "a token is there")
    return note("HF hub", "no token: public models and data alone", "`hf auth login` for those that ask for one")
