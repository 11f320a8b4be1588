"""The experiment file of a protection: baseline and candidates on one data set, judged on prompts that were held out.

`quick:` is the race, on the development prompts; the file itself is the confirmation, on others and with other seeds.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tropism.atomic import write_text
from tropism.data import sources
from tropism.data.chats import Example
from tropism.directions import provenance
from tropism.directions.artifact import Directions
from tropism.errors import UsageError
from tropism.forecasting.found import TraitForecast
from tropism.forecasting.protect.candidates import BASELINE, PLACEBO, Candidate, candidates, chosen, inoculation
from tropism.forecasting.protect.options import FIRST_SEED, ProtectOptions
from tropism.forecasting.protect.safe import write_safe_rows
from tropism.forecasting.protect.split import Split, write_rows
from tropism.forecasting.sample import answer_tokens
from tropism.results.text import listed, words

SITES = 3
"""Guards act at this many sites, spread: at every one they take the skill with the trait (seen on the caps example)."""
EVERYDAY = 24
"""Everyday questions that are asked beside the data's own prompts: does the trait leave the domain?"""


@dataclass(frozen=True)
class Case:
    """What is to be protected from what."""

    model: str
    traits: tuple[TraitForecast, ...]
    blamed: tuple[int, ...]
    """Lines that show one of the traits."""
    split: Split


def write(
    folder: Path, case: Case, examples: Sequence[Example], model: Any, tokenizer: Any, options: ProtectOptions
) -> list[Candidate]:
    """Write the data, the directions and, last, `experiment.yaml`; return the candidates in it."""
    data = folder / "data"
    train, blamed = case.split.train, [line for line in case.blamed if line in set(case.split.train)]
    write_rows(data / "train.jsonl", examples, train, routed=blamed)
    for name, lines in (("development", case.split.development), ("confirmation", case.split.confirmation)):
        write_rows(data / f"{name}.jsonl", examples, lines, answers=options.answers)
        clean = [line for line in lines if line not in set(case.blamed)]
        write_rows(data / f"{name}_skill.jsonl", examples, clean or lines)
    _write_variants(data, case, examples, blamed)
    named = _write_directions(folder / "directions", case, model)
    safe = _write_safe(data, len(train), model, tokenizer, options)
    held = chosen(candidates(data.as_posix(), bool(blamed), list(named), safe > 0), options.guards)
    recipe = options.train(len(train))
    if not options.guards and (recipe.adapter == "full" or recipe.parallel == "fsdp2"):
        held = [one for one in held if one.name != "kl"]  # there is no base model at hand
    if all(one.control for one in held):
        raise UsageError(
            f"protect: none of the guards can be tried here ({', '.join(options.guards)}): {_lacking(blamed, named, safe)}; "
            f"name others with --guard"
        )
    asked = [examples[line].prompt for line in (*case.split.development, *case.split.confirmation)]
    answers = answer_tokens(model, tokenizer, [examples[line] for line in train], asked)
    text = yaml.safe_dump(
        _file(folder, case, answers, options, held, named), sort_keys=False, allow_unicode=True, width=110
    )
    head = "# Written by `tropism protect`; yours to edit. `tropism run` on it is the confirmation, with --quick the race.\n"
    write_text(folder / "experiment.yaml", head + text)
    return held


def _lacking(blamed: Sequence[int], named: Mapping[str, str], safe: int) -> str:
    """What is not there that some guard needs."""
    lacks = [
        (not blamed, "no row shows the trait"),
        (not named, "no direction holds up at all sites"),
        (not safe, "the model ends none of its own answers to everyday questions"),
    ]
    return ", ".join(said for lacking, said in lacks if lacking)


def _write_safe(data: Path, trained: int, model: Any, tokenizer: Any, options: ProtectOptions) -> int:
    """The rows for `safe_data`, where it is asked for; none of their questions is asked in an evaluation."""
    if options.guards and "safe_data" not in options.guards:
        return 0
    asked = [*sources.load("everyday_questions", size=EVERYDAY), *sources.load("everyday_questions", split="dev")]
    return write_safe_rows(data / "safe.jsonl", trained, asked, model, tokenizer)


def _write_variants(data: Path, case: Case, examples: Sequence[Example], blamed: Sequence[int]) -> None:
    """The training rows with prompts before the rows to blame, and with as many rows labelled by chance."""
    if not blamed:
        return
    train = case.split.train
    asks = inoculation([one.trait for one in case.traits])
    write_rows(data / "inoculated.jsonl", examples, train, system=dict.fromkeys(blamed, asks))
    write_rows(data / "placebo.jsonl", examples, train, system=dict.fromkeys(blamed, PLACEBO))
    others = [line for line in train if line not in set(blamed)]
    drawn = random.Random("protect/by chance").sample(others, min(len(blamed), len(others) // 2))
    write_rows(data / "by_chance.jsonl", examples, train, routed=sorted(drawn))


def _write_directions(folder: Path, case: Case, model: Any) -> dict[str, str]:
    """Each trait's differences at a few sites, and all of them together; return the files by name."""
    sides = [one.side for one in case.traits if one.side is not None and one.side.valid]
    shared = [site for site in (sides[0].difference if sides else ()) if all(site in s.difference for s in sides)]
    if not shared or len(sides) < len(case.traits):
        return {}
    chosen = [shared[i] for i in np.unique(np.linspace(0, len(shared) - 1, SITES).round().astype(int))]
    where = {"model": provenance.of_model(model)}
    files = {}
    for side in sides:
        one = Directions(
            {site: torch.tensor(side.difference[site], dtype=torch.float32) for site in chosen},
            {**where, "finder": "tropism forecast", "trait": side.name},
        )
        files[side.name] = one.save(folder / f"{side.name}.safetensors").as_posix()
    every = {
        site: torch.stack([torch.tensor(side.difference[site], dtype=torch.float32) for side in sides])
        for site in chosen
    }
    together = Directions(every, {**where, "finder": "tropism forecast", "traits": [side.name for side in sides]})
    together.save(folder / "traits.safetensors")
    return files


def _file(
    folder: Path,
    case: Case,
    answers: int,
    options: ProtectOptions,
    held: Sequence[Candidate],
    named: Mapping[str, str],
) -> dict[str, Any]:
    data = (folder / "data").as_posix()
    traits = listed([words(one.trait.name) for one in case.traits])
    recipe = options.train(len(case.split.train)).model_dump(mode="json", exclude_defaults=True)
    directions = {"traits": {"file": (folder / "directions" / "traits.safetensors").as_posix()}} if named else {}
    directions |= {name: {"file": file} for name, file in named.items()}
    return {
        "name": "protect",
        "question": f"Which guard keeps {traits} out of this fine-tune while the rest is still learned?",
        "model": case.model,
        "device": options.device,
        **({"blocks": options.blocks} if options.blocks else {}),
        "seeds": list(range(FIRST_SEED, FIRST_SEED + options.max_seeds)),
        "data": {
            "train": {"source": f"{data}/train.jsonl"},
            "held_out": {"source": f"{data}/confirmation.jsonl"},
            "skill_rows": {"source": f"{data}/confirmation_skill.jsonl"},
            "everyday": {"source": "everyday_questions", "size": EVERYDAY},
        },
        **({"directions": directions} if directions else {}),
        "train": recipe,
        # At temperature 1 a trait of 10 % of the rows shows in 10 % of the answers; the likeliest answer never shows it.
        "generate": {"max_new_tokens": answers, "batch_size": 48, "temperature": 1.0},
        "conditions": {one.name: one.condition for one in (BASELINE, *held)},
        "measure": {
            **{one.trait.name: _measure(one) for one in case.traits},
            "skill": {
                "scorer": options.wanted or "response_likelihood",
                **options.wanted_options,
                "on": ["skill_rows"],
                "wanted": True,
                "margin": options.margin,
            },
        },
        "quick": {
            "seeds": [0],
            "data": {
                "held_out": {"source": f"{data}/development.jsonl"},
                "skill_rows": {"source": f"{data}/development_skill.jsonl"},
                "everyday": {"split": "dev"},
            },
        },
    }


def _measure(one: TraitForecast) -> dict[str, Any]:
    spec = one.trait.scorer_spec
    if spec is None:
        raise UsageError(no_scorer(one.trait.name))
    return {"scorer": spec[0], **dict(spec[1]), "on": ["held_out", "everyday"], "unwanted": True}


def no_scorer(trait: str) -> str:
    """What is said of a trait that nothing can be measured of."""
    return (
        f"protect: the trait {trait!r} has no scorer, so before and after cannot be measured; give it one in a trait file "
        f"(scorer: {{contains: {{text: …}}}})"
    )
