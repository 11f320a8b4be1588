"""Turn the options of `tropism directions` into a finder, a contrast and scored answers."""

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


def make_contrast(
    model: Any,
    file: Path | None,
    chats: str | None,
    promote: str | None,
    suppress: str | None,
    tuned: Path | None,
    size: int | None,
    seed: int,
) -> "Contrast":
    """Return the contrast that the options describe; raises `UsageError` unless they describe exactly one."""
    import tropism as tp
    from tropism.data import sources
    from tropism.directions.contrast_files import prompts_of, read_contrast

    given = [
        name for name, value in (("--contrast", file), ("--promote", promote), ("--tuned", tuned)) if value is not None
    ]
    if len(given) != 1:
        raise UsageError(
            "give one contrast: --contrast FILE, or --promote TEXT --suppress TEXT --chats SOURCE, or --tuned ADAPTER "
            f"--chats SOURCE; found {' and '.join(given) or 'none of them'}"
        )
    if file is not None:
        return read_contrast(file)
    if chats is None:
        raise UsageError(f"{given[0]} needs --chats SOURCE: the chats to read both sides on")
    read = [example.chat for example in sources.load(chats, size=size, seed=seed)]
    if tuned is not None:
        return tp.Contrast.of_models(read, tuned=model)
    if promote is None or suppress is None:
        raise UsageError("--promote needs --suppress: the system prompt that asks for the opposite")
    return tp.Contrast.of_system_prompts(prompts_of(list(read)), promote=promote, suppress=suppress)


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
