"""Uploads to the hub: private unless asked otherwise, and what goes wrong is one sentence without the token."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tropism import models
from tropism.errors import UsageError


class Hub(Protocol):
    """What is asked of the hub: `huggingface_hub.HfApi` has it."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any: ...

    def repo_info(self, repo_id: str) -> Any: ...

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any: ...


MakeHub = Callable[[str], Hub]

ADVICE = {
    401: "the token in HF_TOKEN is not accepted; make one with write access",
    403: "the token in HF_TOKEN may not write there; make one with write access, or take a namespace of yours",
    404: "there is no such namespace, or the token in HF_TOKEN may not see it",
    409: "another upload to it may be going on; run the same command again",
    413: "a file is too large for the hub",
    429: "too many requests; wait, and run the same command again",
}
"""What to do about a status that the hub answers with."""
AGAIN = "run the same command again: what has arrived is not sent twice"


@dataclass(frozen=True)
class Pushed:
    """Where something was pushed, and whether others can see it."""

    address: str
    private: bool

    def __str__(self) -> str:
        return f"{self.address} ({'private' if self.private else 'public'})"


def hf_hub(token: str) -> Hub:
    """The hub that `HF_ENDPOINT` names, by default huggingface.co."""
    from huggingface_hub import HfApi

    api: Hub = HfApi(token=token, library_name="tropism")  # type: ignore[assignment]
    return api


def need_token() -> str:
    """The token; raises `UsageError` where there is none."""
    token = models.hub_token()
    if not token:
        raise UsageError(
            "push needs a hub token: set HF_TOKEN in the environment or in .env, or look first with --dry-run"
        )
    return token


def upload(make: MakeHub, token: str, repo: str, folder: Path, *, public: bool, message: str) -> Pushed:
    """Make the repository where there is none and commit the folder to it.

    Raises `UsageError` where the hub refuses, answers what cannot be read, or is out of reach, and where a repository
    that is there is public and `public` was not asked for.
    """
    api = make(token)
    # What the hub refuses is an OSError of huggingface_hub, a dead connection one of its HTTP client, an upload that broke
    # off a RuntimeError, and an answer that is not as it should be a ValueError or a KeyError.
    try:
        made = api.create_repo(repo, private=not public, exist_ok=True)
        private = bool(api.repo_info(repo).private)
        if private or public:
            api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message=message)
    except (OSError, RuntimeError, ValueError, KeyError, _http_error()) as error:
        raise UsageError(f"the hub did not take {repo}: {_sentence(error, token)}") from None
    if not private and not public:
        raise UsageError(
            f"the repository {repo} is there and public, so nothing was uploaded; pass --public to add to it, make it "
            "private on the hub, or take another name"
        )
    return Pushed(str(made), private)


def _sentence(error: Exception, token: str) -> str:
    answer = getattr(error, "response", None)  # theirs: only an answered request has one
    status = getattr(answer, "status_code", None)
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        said = f"{said} ({str(error.__cause__).splitlines()[0]})"
    if isinstance(error, KeyError):
        said = f"its answer lacks {said}"
    if isinstance(status, int) and not said.startswith(str(status)):
        said = f"{status} {said}"
    if status in ADVICE:
        advice = ADVICE[status]
    elif status is None and isinstance(error, ValueError | KeyError):
        advice = "its answer is not the hub's; check HF_ENDPOINT"
    else:
        advice = AGAIN
    # The token stands in no address that the hub is asked at; a hub that repeats it must not have it printed.
    return f"{said}; {advice}".replace(token, "…")


def _http_error() -> type[Exception]:
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    found: type[Exception] = HTTPError
    return found
