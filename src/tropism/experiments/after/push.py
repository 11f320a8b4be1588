"""Publishes a run's deployable adapter on the hub, with a model card; no model is loaded."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import yaml

from tropism import models
from tropism.errors import RunFolderError, UsageError
from tropism.experiments.after.finished import WEIGHTS, Finished, adapter_folders, locate
from tropism.experiments.after.model_card import Card, public
from tropism.experiments.file.complaints import listed
from tropism.experiments.file.guards import parts
from tropism.experiments.start import prepared_adapter
from tropism.results import folder as results

CONFIG = "adapter_config.json"


class Hub(Protocol):
    """What is asked of the hub: `huggingface_hub.HfApi` has it."""

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Any: ...

    def repo_info(self, repo_id: str) -> Any: ...

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any: ...


def hf_hub(token: str) -> Hub:
    """The hub that `HF_ENDPOINT` names, by default huggingface.co."""
    from huggingface_hub import HfApi

    api: Hub = HfApi(token=token, library_name="tropism")  # type: ignore[assignment]
    return api


def push(
    path: str | Path,
    repo: str,
    *,
    private: bool = False,
    base_model: str | None = None,
    hub: Callable[[str], Hub] = hf_hub,
) -> str:
    """Upload what `write` writes to a repository, which is made where there is none; returns its address.

    The token is `HF_TOKEN` of the environment or of `.env` in the working directory; it is handed to the hub and is in
    no file and no message.

    Raises: as `write`; `UsageError` without a token, where the hub refuses or cannot be reached, or where `private` is
    asked of a repository that is public already.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "push"
        write(path, repo, folder, base_model=base_model)
        token = models.hub_token()
        if not token:
            raise UsageError(
                "push needs a hub token: set HF_TOKEN in the environment or in .env, or look first with --dry-run"
            )
        api = hub(token)
        # what the hub answers is an OSError of huggingface_hub, a dead connection one of its http client
        try:
            # without --private the owner's own default holds
            made_repo = api.create_repo(repo, private=private or None, exist_ok=True)
            public_already = private and not api.repo_info(repo).private
            if not public_already:
                api.upload_folder(
                    repo_id=repo, folder_path=str(folder), commit_message="Adapter and model card, by tropism push"
                )
        except (OSError, _http_error()) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(token, "…")
            raise UsageError(f"the hub did not take {repo}: {said}") from None
    if public_already:
        raise UsageError(
            f"--private: the repository {repo} is there and public; make it private on the hub, or take another"
        )
    return str(made_repo)


def write(path: str | Path, repo: str, out: str | Path, *, base_model: str | None = None) -> list[str]:
    """Write the folder that `push` uploads, and return the names of its files.

    | file | what |
    |---|---|
    | `README.md` | the model card |
    | `adapter_config.json`, `adapter_model.safetensors` | the adapter; of a routed run the `retain` adapter |
    | `experiment.yaml` | the experiment, without this machine's folders |
    | `start_from/` | the adapter that is merged into the base model first, where the experiment has one |

    Args:
        path: one run (`runs/caps/caft/seed-0`), or the folder of a condition, whose first seed it then is.
        repo: `OWNER/NAME`, which the card names.
        out: a folder that is not there yet, or empty.
        base_model: the base model's name on the hub, where the experiment has it from a local folder.

    Raises:
        UsageError: a name that is no `OWNER/NAME`; an untrained model; two adapters without routing; a base model that
            nobody else has; an `out` that is not empty.
        RunFolderError: no run; one that failed, is not finished, or has no adapter.
    """
    _check_name("--repo", repo)
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"--out: {target} is there and not empty; give a folder that is not there yet")
    found, key = locate(path)
    if key is None:
        shown = [str(found.folder.run_path(done)) for done in found.done()]
        raise UsageError(f"{path} is an experiment's folder; give the folder of one run, finished are {listed(shown)}")
    if key.seed is None:
        raise UsageError(f"{path} is the untrained model, of which there is nothing to push; give a trained run")
    adapters = found.adapters(key)
    routed = len(adapters) == 2
    if routed and "gradient_routing" not in [
        name for name, _ in parts(found.experiment.conditions[key.condition].guard)
    ]:
        raise UsageError(
            f"the run {key} has two adapters and nothing was routed between them, so neither alone is what was trained; push "
            f"a routed run, or one with a single adapter"
        )
    base, revision = _base(found, base_model)
    card = str(Card(found.experiment, results.load(found.folder.path), key, repo, base, routed))
    target.parent.mkdir(parents=True, exist_ok=True)
    # made beside its place and moved there, so that no half of it is ever there
    with tempfile.TemporaryDirectory(dir=target.parent) as made:
        new = Path(made) / "push"
        _copy(adapters["retain" if routed else ""], new, base, revision)
        if found.experiment.start_from is not None:
            _copy(_start(found, found.experiment.start_from), new / "start_from", base, revision)
        (new / "README.md").write_text(card, encoding="utf-8")
        described = public(found.experiment.resolved() | {"model": base})
        (new / "experiment.yaml").write_text(
            yaml.safe_dump(described, sort_keys=False, allow_unicode=True, width=110), encoding="utf-8"
        )
        if target.exists():
            target.rmdir()
        os.replace(new, target)
    return sorted(str(file.relative_to(target)) for file in target.rglob("*") if file.is_file())


def _base(found: Finished, given: str | None) -> tuple[str, str | None]:
    """The base model's name and revision on the hub."""
    if given is not None:
        _check_name("--base-model", given)
        return given, None
    recorded = found.environment().get("model") or {}
    name = found.experiment.model
    if recorded.get("kind") == "folder" or name.startswith((".", "/", "~")) or Path(name).is_dir():
        raise UsageError(
            f"the run's base model is a local folder ({Path(name).name!r}), which nobody else has; name its repository on "
            f"the hub with --base-model OWNER/NAME"
        )
    return name, recorded.get("revision") if recorded.get("kind") == "hub" else found.experiment.revision


def _start(found: Finished, name: str) -> Path:
    folders = adapter_folders(prepared_adapter(found.folder, name))
    if "" not in folders:
        raise RunFolderError(f"start_from: the adapter {name!r} is not in the folder; run the experiment again")
    return folders[""]


def _copy(adapter: Path, to: Path, base: str, revision: str | None) -> None:
    """An adapter in PEFT's format, whose configuration names the base model as others know it."""
    to.mkdir(parents=True)
    shutil.copyfile(adapter / WEIGHTS, to / WEIGHTS)
    config = results.read_json(adapter / CONFIG)
    config |= {"base_model_name_or_path": base, "revision": revision}
    (to / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _check_name(option: str, name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"{option} must be OWNER/NAME, found {name!r}: {str(error).splitlines()[0]}") from None
    if name.count("/") != 1:
        raise UsageError(f"{option} must be OWNER/NAME, found {name!r}")


def _http_error() -> type[Exception]:
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    found: type[Exception] = HTTPError
    return found
