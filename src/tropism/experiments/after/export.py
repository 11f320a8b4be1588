"""Writes a finished run as a folder that loads anywhere, by transformers alone or with PEFT."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tropism import models
from tropism.adapters.load import check_fits
from tropism.atomic import write_text
from tropism.errors import UsageError
from tropism.experiments.after.arms import Arm, arm_of
from tropism.experiments.after.finished import WEIGHTS
from tropism.experiments.after.model_card import public
from tropism.experiments.start import load_tokenizer, start_model
from tropism.names import VERSION
from tropism.results.folder import read_json

CONFIG = "adapter_config.json"
ABOUT = "tropism.json"
_PART = {"forget_ablated": "retain", "retain_ablated": "forget"}
"""Which adapter a mode leaves."""


@dataclass(frozen=True)
class Exported:
    """What was written: `files` in `folder`, and how it loads."""

    folder: Path
    files: tuple[str, ...]
    how: str


def export(path: str | Path, out: str | Path, *, merged: bool = False, mode: str | None = None) -> Exported:
    """Write a run's model to a new folder, which `AutoModelForCausalLM.from_pretrained(OUT)` loads.

    There is always the tokenizer with its chat template, and `tropism.json`, which says what run and mode it is. `merged`
    adds a plain model, with the adapter merged into its weights. Otherwise there is the adapter, and the base model beside
    it where others do not have it: the embedded SmolLM2, a local folder, a base with `start_from` merged in.

    Args:
        path: a run, `runs/caps/caft/seed-0`; `runs/caps/base` for the untrained model, which only `merged` takes.
        out: a folder that is not there yet, or empty.
        merged: merge the adapter into the weights.
        mode: of a run with two adapters, `full` (which only `merged` takes), `forget_ablated` or `retain_ablated`.

    Raises:
        UsageError: an `out` that is not empty; a mode that the run does not have; what only `merged` takes.
        RunFolderError: no run; one that failed, is not finished, or has no adapter.
        ModelError: a base model that cannot be had; an adapter that does not fit it or cannot be merged exactly.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there and not empty; give a folder that is not there yet")
    arm = arm_of(path, mode)
    if not merged:
        _check_single(arm)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as made:
        new = Path(made) / "export"
        new.mkdir()
        how = _write_merged(arm, new) if merged else _write_adapter(arm, new)
        write_text(new / ABOUT, json.dumps(_about(arm, merged), indent=1) + "\n")
        if target.exists():
            target.rmdir()
        os.replace(new, target)
    files = sorted(file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file())
    return Exported(target, tuple(files), how.format(folder=target))


def _check_single(arm: Arm) -> None:
    if arm.trained.adapter is None:
        raise UsageError(f"{arm.key} is the untrained model, which has no adapter; export it with --merged")
    if arm.two and arm.mode == "full":
        raise UsageError(
            f"the run {arm.key} has two adapters, of which a folder holds one; export it with --merged, or one adapter with "
            "--mode forget_ablated or retain_ablated"
        )


def _write_merged(arm: Arm, new: Path) -> str:
    model, tokenizer = arm.load()
    model.save_pretrained(str(new))
    tokenizer.save_pretrained(str(new))
    return 'AutoModelForCausalLM.from_pretrained("{folder}")'


def _write_adapter(arm: Arm, new: Path) -> str:
    found = arm.found
    source, _ = found.source()
    adapter = found.adapters(arm.key)[_PART[arm.mode] if arm.two else ""]
    check_fits(adapter, models.skeleton(source, trust_remote_code=found.experiment.trust_remote_code))
    if source.kind != "hub" or found.experiment.start_from is not None:
        # Beside the adapter: transformers then takes both from this folder, wherever it is moved to.
        model, tokenizer = start_model(found.experiment, found.folder, source)
        model.save_pretrained(str(new))
    else:
        tokenizer = load_tokenizer(found.experiment, source, found.folder)
    tokenizer.save_pretrained(str(new))
    shutil.copyfile(adapter / WEIGHTS, new / WEIGHTS)
    config: dict[str, Any] = read_json(adapter / CONFIG)
    revision = source.revision if source.kind == "hub" else None
    config |= {"base_model_name_or_path": public(source.name), "revision": revision}
    write_text(new / CONFIG, json.dumps(config, indent=2) + "\n")
    return 'AutoModelForCausalLM.from_pretrained("{folder}"), with peft installed'


def _about(arm: Arm, merged: bool) -> dict[str, Any]:
    source, note = arm.found.source()
    return {
        "experiment": arm.found.experiment.name, "run": str(arm.key), "mode": arm.mode, "merged": merged,
        "base_model": public(source.public()), "note": note, "adapters_sha256": arm.digest(), "tropism": VERSION,
    }  # fmt: skip
