"""Turn the options of `tropism directions` into a finder, a contrast and scored answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tropism.cli.directions_output import say
from tropism.errors import UsageError

if TYPE_CHECKING:
    from tropism.directions.contrasts import Contrast
    from tropism.directions.finder import Finder
    from tropism.directions.validate import Behaviour


class FinderName(StrEnum):
    """The finders, by the names that files and provenance use."""

    mean_difference = "mean_difference"
    pca = "pca"
    logistic_probe = "logistic_probe"
    sae_latents = "sae_latents"


def make_finder(name: FinderName, k: int | None, sae: Path | None) -> "Finder":
    """Return the finder that the options describe; raises `UsageError` where they contradict each other."""
    import tropism as tp

    if sae is not None and name is not FinderName.sae_latents:
        raise UsageError(f"--sae needs --finder sae_latents, found --finder {name.value}")
    if k is not None and name not in (FinderName.pca, FinderName.sae_latents):
        raise UsageError(f"--k needs --finder pca or sae_latents, found --finder {name.value}")
    if name is FinderName.pca:
        return tp.PCA() if k is None else tp.PCA(k=k)
    if name is FinderName.logistic_probe:
        return tp.LogisticProbe()
    if name is FinderName.sae_latents:
        if sae is None:
            raise UsageError("--finder sae_latents needs --sae FOLDER (tropism directions train-sae makes one)")
        return tp.SAELatents(folder=str(sae)) if k is None else tp.SAELatents(folder=str(sae), k=k)
    return tp.MeanDifference()


@dataclass(frozen=True)
class ContrastOptions:
    """The options of a command that describe a contrast."""

    file: Path | None
    chats: str | None
    promote: str | None
    suppress: str | None
    tuned: str | None
    columns: Mapping[str, str] | None
    split: str
    size: int | None
    seed: int

    def check(self) -> None:
        """Raise `UsageError` unless the options describe one contrast; needs no model."""
        named = (("--contrast", self.file), ("--promote", self.promote), ("--tuned", self.tuned))
        given = [name for name, value in named if value is not None]
        if len(given) != 1:
            raise UsageError(
                "give one contrast: --contrast FILE, or --promote TEXT --suppress TEXT --chats SOURCE, or --tuned ADAPTER "
                f"--chats SOURCE; found {' and '.join(given) or 'none of them'}"
            )
        if self.file is not None:
            unused = {
                "--chats": self.chats,
                "--size": self.size,
                "--split": None if self.split == "train" else self.split,
            }
            for name, value in unused.items():
                if value is not None:
                    raise UsageError(f"{name} goes with --promote or --tuned, and does nothing with --contrast FILE")
        elif self.chats is None:
            raise UsageError(f"{given[0]} needs --chats SOURCE: the chats to read both sides on")
        if self.promote is not None and self.suppress is None:
            raise UsageError("--promote needs --suppress: the system prompt that asks for the opposite")


def make_contrast(model: Any, options: ContrastOptions) -> "Contrast":
    """Return the contrast that checked options describe."""
    import tropism as tp
    from tropism.data import sources
    from tropism.directions.contrast_files import prompts_of, read_contrast

    if options.file is not None:
        return read_contrast(options.file, options.columns)
    examples = sources.load(
        str(options.chats), size=options.size, split=options.split, seed=options.seed, columns=options.columns
    )
    read = [example.content for example in examples]
    if options.tuned is not None:
        return tp.Contrast.of_models(read, tuned=model)
    return tp.Contrast.of_system_prompts(
        prompts_of(list(read)), promote=str(options.promote), suppress=str(options.suppress)
    )


def score_behaviour(model: Any, tokenizer: Any, score: str | None, held_out: "Contrast") -> "Behaviour | None":
    """Score the model's own answers to the held-out prompts; with an adapter, also those of the tuned model."""
    if score is None:
        return None
    from tropism.evals.behaviour import own_answers, scored
    from tropism.evals.scorers.base import ResponseScorer
    from tropism.evals.scorers.registry import load_scorer

    scorer = load_scorer(score)
    if not isinstance(scorer, ResponseScorer):
        raise UsageError(f"--score must name a scorer that scores text by a rule, found {score!r}, which runs a model")
    answered = own_answers(model, tokenizer, held_out)
    behaviour, unscored = scored(score, scorer, answered)
    if unscored:
        say(f"{unscored} of {len(answered)} answers could not be scored and are left out of the correlation")
    return behaviour
