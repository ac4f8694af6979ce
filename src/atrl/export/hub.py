"""The Hugging Face hub, as far as a model's folder goes there. The token is the environment's or the login's."""

from __future__ import annotations

from pathlib import Path


def _refusals() -> tuple[type[Exception], ...]:
    """What the client raises when the hub says no, or can't be reached."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    return (HfHubHTTPError, httpx.HTTPError, OSError)


def check_login(repository: str) -> None:
    """Raises ValueError, in one line, unless somebody is logged in; asks the hub."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise ValueError(f"push_to_hub={repository} needs a login: run `hf auth login`, or set HF_TOKEN")
    try:
        HfApi().whoami()
    except _refusals() as error:
        raise ValueError(
            f"push_to_hub={repository}: the hub does not know who is logged in ({_status(error)}): run `hf auth login` "
            "again, or set HF_TOKEN to a valid token"
        ) from None


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload the files of `folder` to `repository`, which is made if it isn't there; the address.

    Raises:
        ValueError: if the hub refuses; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        made = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Trained with atrl")
    except _refusals() as error:
        raise ValueError(
            f"push_to_hub={repository}: the hub did not take {folder} ({_status(error)}): the token must be allowed to "
            "write there; what was exported is complete"
        ) from None
    return str(made)


def _status(error: Exception) -> str:
    """What went wrong without the request, whose headers are nobody's business."""
    response = getattr(error, "response", None)
    return type(error).__name__ if response is None else f"HTTP {response.status_code}"
