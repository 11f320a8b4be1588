"""Publishes runs, prepared adapters and directions on the hub, each with a card; no weights of a model are loaded."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from tropism import models
from tropism.adapters.load import check_fits
from tropism.atomic import write_text
from tropism.directions.validity import validity_path
from tropism.errors import RunFolderError, UsageError
from tropism.experiments.after.finished import WEIGHTS, Finished, adapter_folders, locate
from tropism.experiments.after.hub import MakeHub, Pushed, hf_hub, need_token, upload
from tropism.experiments.after.model_card import Card, public
from tropism.experiments.after.part_cards import adapter_card, directions_card
from tropism.experiments.file.complaints import listed
from tropism.experiments.file.guards import parts
from tropism.experiments.start import intact_adapter
from tropism.experiments.store import RunKey
from tropism.names import BASE
from tropism.results import folder as results

CONFIG = "adapter_config.json"
TRAINED = "TRAINED.json"
"""The stamp beside the adapter of a run."""
DIRECTIONS = "directions.safetensors"

Report = Callable[[str], None]


def push(
    path: str | Path, repo: str, *, public: bool = False, base_model: str | None = None, hub: MakeHub = hf_hub
) -> Pushed:
    """Upload what `write` writes to a repository, which is made, private, where there is none.

    The token is `HF_TOKEN` of the environment or of `.env` in the working directory; it is handed to the hub and is in
    no file and no message.

    Raises: as `write`; `UsageError` without a token, where the hub refuses or cannot be reached, or where the repository
    is public already and `public` was not asked for.
    """
    return push_all({repo: path}, public=public, base_model=base_model, hub=hub)[0]


def push_all(
    paths: Mapping[str, str | Path],
    *,
    public: bool = False,
    base_model: str | None = None,
    hub: MakeHub = hf_hub,
    report: Report = lambda _: None,
) -> list[Pushed]:
    """Upload several, `{repository: path}`: all are written and checked before the first goes out.

    `report` is told each one that has arrived. Raises as `push`; the message names what had arrived before.
    """
    done: list[Pushed] = []
    with tempfile.TemporaryDirectory() as made:
        folders = {repo: Path(made) / str(index) for index, repo in enumerate(paths)}
        for repo, path in paths.items():
            write(path, repo, folders[repo], base_model=base_model)
        token = need_token()
        for repo, folder in folders.items():
            try:
                done.append(upload(hub, token, repo, folder, public=public, message="By tropism push"))
            except UsageError as error:
                before = f"; pushed before it: {', '.join(pushed.address for pushed in done)}" if done else ""
                raise UsageError(f"{error}{before}") from None
            report(str(done[-1]))
    return done


def write(path: str | Path, repo: str, out: str | Path, *, base_model: str | None = None) -> list[str]:
    """Write the folder that `push` uploads, and return the names of its files.

    | of | file | what |
    |---|---|---|
    | all | `README.md` | the card |
    | a run | `adapter_config.json`, `adapter_model.safetensors` | the adapter; of a routed run the `retain` adapter |
    | | `experiment.yaml` | the experiment, without this machine's folders |
    | | `start_from/` | the adapter that is merged into the base model first, where the experiment has one |
    | a prepared adapter | the same | |
    | directions | `directions.safetensors` | the file |
    | | `directions.validity.json` | the report of `directions validate`, where there is one |

    The tensors of each adapter are checked against its configuration and the base model's modules.

    Args:
        path: one run (`runs/caps/caft/seed-0`), or the folder of a condition, whose first seed it then is; a prepared
            adapter (`runs/caps/adapters/NAME`); a file of directions (`runs/caps/directions/NAME.safetensors`).
        repo: `OWNER/NAME`, which the card names.
        out: a folder that is not there yet, or empty.
        base_model: the base model's name on the hub, where the experiment has it from a local folder.

    Raises:
        UsageError: a name that is no `OWNER/NAME`; an untrained model; two adapters without routing; a base model that
            nobody else has; an `out` that is not empty.
        RunFolderError: no run; one that failed, is not finished, or has no adapter.
        ModelError: an adapter with tensors that are missing or fit nowhere; a base model that is not here to check against.
        DirectionsError: a file that holds no directions.
    """
    return write_all({repo: (path, out)}, base_model=base_model)[repo]


def write_all(
    several: Mapping[str, tuple[str | Path, str | Path]], *, base_model: str | None = None
) -> dict[str, list[str]]:
    """Write the folders of several, `{repository: (path, out)}`, as `write` does one: all of them, or none.

    Returns the names of the files of each; raises as `write`.
    """
    with ExitStack() as stack:
        for repo, (path, out) in several.items():
            _fill(Path(path), repo, stack.enter_context(_beside(Path(out))), base_model)
    return {
        repo: sorted(file.relative_to(out).as_posix() for file in Path(out).rglob("*") if file.is_file())
        for repo, (_, out) in several.items()
    }


def _fill(given: Path, repo: str, new: Path, base_model: str | None) -> None:
    """Write into a folder what goes up of a run, a prepared adapter or a file of directions."""
    _check_name("--repo", repo)
    if base_model is not None:
        _check_name("--base-model", base_model)
    prepared = _prepared(given)
    if given.is_file():
        _write_directions(given, repo, new, base_model)
    elif prepared is not None:
        _write_prepared(*prepared, repo, new, base_model)
    elif given.name == "adapter" and (given.parent / TRAINED).is_file():
        _write_run(given.parent, repo, new, base_model)  # the run whose adapter it is
    elif (given / CONFIG).is_file():
        raise UsageError(
            f"{given} is an adapter that no experiment here trained, of which a card could say nothing; upload it as it is: "
            f"hf upload {repo} {given}"
        )
    else:
        _write_run(given, repo, new, base_model)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Give a folder to fill, which is then moved to `target`, so that no half of it is ever there."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"--out: {target} is there and not empty; give a folder that is not there yet")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as made:
        new = Path(made) / "push"
        yield new
        if target.exists():
            target.rmdir()
        os.replace(new, target)


def _write_run(path: Path, repo: str, new: Path, base_model: str | None) -> None:
    found, key = locate(path)
    if key is None:
        shown = [str(found.folder.run_path(done)) for done in found.done()]
        raise UsageError(f"{path} is an experiment's folder; give the folder of one run, finished are {listed(shown)}")
    if key.seed is None:
        what = "the untrained model" if key.condition == BASE else "of a condition that was there already"
        raise UsageError(f"{path} is {what}, of which there is nothing to push; give a trained run")
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
    adapter, start = adapters["retain" if routed else ""], _start(found)
    card = str(Card(found.experiment, results.load(found.folder.path), key, repo, base, routed, start))
    _check_keys(found, [adapter, *([start] if start else [])])
    _copy(adapter, new, base, revision)
    if start is not None:
        _copy(start, new / "start_from", base, revision)
    write_text(new / "README.md", card)
    _write_experiment(found, new, base)


def _write_prepared(found: Finished, name: str, repo: str, new: Path, base_model: str | None) -> None:
    base, revision = _base(found, base_model)
    adapter = intact_adapter(found.folder, name)
    folders = adapter_folders(adapter)
    if "" not in folders:
        raise RunFolderError(f"the prepared adapter {name!r} has no adapter stored; run the experiment again")
    card = adapter_card(found.experiment, name, repo, base, results.load(found.folder.path).environment)
    _check_keys(found, [folders[""]])
    _copy(folders[""], new, base, revision)
    write_text(new / "README.md", card)
    _write_experiment(found, new, base)


def _write_directions(file: Path, repo: str, new: Path, base_model: str | None) -> None:
    card = directions_card(file, repo, base_model)
    new.mkdir(parents=True)
    shutil.copyfile(file, new / DIRECTIONS)
    validity = validity_path(file)
    if validity.is_file():
        shutil.copyfile(validity, validity_path(new / DIRECTIONS))
    write_text(new / "README.md", card)


def _write_experiment(found: Finished, new: Path, base: str) -> None:
    described = public(found.experiment.resolved() | {"model": base})
    write_text(new / "experiment.yaml", yaml.safe_dump(described, sort_keys=False, allow_unicode=True, width=110))


def _prepared(path: Path) -> tuple[Finished, str] | None:
    """The results folder and the name, where the path is a prepared adapter's folder (`runs/caps/adapters/NAME`)."""
    absolute = path.resolve()
    if absolute.name == "adapter":
        absolute = absolute.parent
    above = absolute.parent.parent
    if absolute.parent.name != "adapters" or not absolute.is_dir() or not (above / "experiment.yaml").is_file():
        return None
    return Finished.read(above), absolute.name


def _base(found: Finished, given: str | None) -> tuple[str, str | None]:
    """The base model's name and revision on the hub."""
    if given is not None:
        return given, None
    recorded = found.environment().get("model") or {}
    name = found.experiment.model
    if recorded.get("kind") == "folder" or name.startswith((".", "/", "~")) or Path(name).is_dir():
        raise UsageError(
            f"the run's base model is a local folder ({Path(name).name!r}), which nobody else has; name its repository on "
            f"the hub with --base-model OWNER/NAME"
        )
    return name, recorded.get("revision") if recorded.get("kind") == "hub" else found.experiment.revision


def _start(found: Finished) -> Path | None:
    name = found.experiment.start_from
    if name is None:
        return None
    folders = adapter_folders(found.folder.run_path(RunKey(f"adapters/{name}", None)) / "adapter")
    if "" not in folders:
        raise RunFolderError(f"start_from: the adapter {name!r} is not in the folder; run the experiment again")
    return folders[""]


def _check_keys(found: Finished, adapters: list[Path]) -> None:
    """Raise `ModelError` where an adapter's tensors are not those that its configuration calls for on the base model."""
    source, _ = found.source()
    for adapter in adapters:
        check_fits(adapter, models.skeleton(source, trust_remote_code=found.experiment.trust_remote_code))


def _copy(adapter: Path, to: Path, base: str, revision: str | None) -> None:
    """An adapter in PEFT's format, whose configuration names the base model as others know it."""
    to.mkdir(parents=True)
    shutil.copyfile(adapter / WEIGHTS, to / WEIGHTS)
    config: Any = results.read_json(adapter / CONFIG)
    config |= {"base_model_name_or_path": base, "revision": revision}
    write_text(to / CONFIG, json.dumps(config, indent=2) + "\n")


def _check_name(option: str, name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"{option} must be OWNER/NAME, found {name!r}: {str(error).splitlines()[0]}") from None
    if name.count("/") != 1 or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UsageError(f"{option} must be OWNER/NAME, found {name!r}")
