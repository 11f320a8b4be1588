"""The validity report: what speaks for a direction and what against it, as plain JSON that a report can draw.

Nothing here runs a model or imports torch; `validate.validate_directions` fills it in.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tropism.atomic import write_text
from tropism.errors import DirectionsError

FORMAT = "tropism.validity/1"

WEAK_AUC = 0.75
"""Below this a direction tells three pairs in four apart at best."""
CONCENTRATED = 0.5
"""A direction with this share of its squared norm in a handful of dimensions is about massive activations."""


def handful(width: int) -> int:
    """How many dimensions are a handful: five, or one in a hundred of a narrow model's."""
    return min(5, max(1, width // 100))


@dataclass(frozen=True)
class Doubt:
    """One doubt, in plain words; `grave` ones make `--strict` refuse the direction."""

    code: str
    text: str
    grave: bool
    site: str | None = None
    about: str = ""
    """The other finder that it is about, where it is about one."""


@dataclass(frozen=True)
class BehaviourEvidence:
    """Projection of the model's own generations against how the behaviour was scored on them."""

    name: str
    n: int
    r: float | None
    """Pearson's correlation; None where scores or projections do not vary."""
    low: float | None
    high: float | None
    projections: Sequence[float]
    scores: Sequence[float]


@dataclass(frozen=True)
class SiteValidity:
    """The evidence at one site. Projections are onto unit directions, in units of the activations."""

    site: str
    k: int
    auc: float
    """Held-out chats told apart by their projection: 0.5 is chance."""
    auc_low: float
    auc_high: float
    n_positive: int
    n_negative: int
    mean_positive: float
    mean_negative: float
    histogram: Mapping[str, Any]
    auc_with_system_prompts: float | None
    """For system prompts, `auc` reads the answers without them; this reads them with the prompt that asked for them."""
    norm: float
    """Length of the first direction as found."""
    separation: float
    """`‖mean(h⁺) − mean(h⁻)‖` within the span, on held-out chats."""
    null_separation: Sequence[float]
    """The same for shuffled labels."""
    p_shuffled: float
    share_in_largest: float
    largest_dimensions: Sequence[int]
    behaviour: BehaviourEvidence | None = None
    angles: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Principal angles in degrees to the directions of other finders, by name."""


@dataclass(frozen=True)
class ValidityReport:
    """All the evidence for one set of directions."""

    name: str
    found_by: Mapping[str, Any]
    """Finder, contrast and positions, from the provenance."""
    held_out: Mapping[str, Any]
    sites: Sequence[SiteValidity]
    similarity: Sequence[Sequence[float]]
    """Cosine between the first directions of every two sites, in the order of `sites`."""
    warnings: Sequence[Doubt]

    @property
    def trusted(self) -> bool:
        """Whether no warning is grave."""
        return not any(warning.grave for warning in self.warnings)

    def best(self) -> SiteValidity:
        """The site with the highest lower bound on its AUC."""
        return max(self.sites, key=lambda site: site.auc_low)

    def doubts(self) -> list[Doubt]:
        """Each doubt once: one that several sites share is given for the first, and counted for the others."""
        shared: dict[tuple[str, bool, str], list[Doubt]] = {}
        for doubt in self.warnings:
            shared.setdefault((doubt.code, doubt.grave, doubt.about), []).append(doubt)
        return [
            first if not others else replace(first, text=f"{first.text} (and at {_sites(len(others))})")
            for first, *others in shared.values()
        ]

    def summary(self) -> str:
        """The report in one or two plain sentences."""
        best = self.best()
        grave = sum(doubt.grave for doubt in self.doubts())
        verdict = (
            "No grave doubts."
            if not grave
            else f"{grave} grave {'doubt' if grave == 1 else 'doubts'}: do not build on it."
        )
        return (
            f"{self.name}: at {best.site} it tells {best.auc:.0%} of held-out pairs apart (AUC {best.auc:.3f}, "
            f"95% interval {best.auc_low:.3f} to {best.auc_high:.3f}; chance is 0.5). {verdict}"
        )

    def require_trusted(self) -> None:
        """Raise `DirectionsError` with the grave warnings, if there are any: what `--strict` does."""
        grave = [doubt.text for doubt in self.doubts() if doubt.grave]
        if grave:
            raise DirectionsError(
                f"the evidence for directions {self.name!r} is too weak to use them: {'; '.join(grave)}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the verdict, the doubts as they are told, and the summary in words."""
        told = {
            "trusted": self.trusted,
            "doubts": [asdict(doubt) for doubt in self.doubts()],
            "summary": self.summary(),
        }
        return {"format": FORMAT, **asdict(self), **told}

    def save(self, path: str | Path) -> Path:
        """Write the JSON; by convention `NAME.validity.json` beside `NAME.safetensors`."""
        target = Path(path)
        write_text(target, json.dumps(self.to_json(), indent=1, allow_nan=False))
        return target

    @classmethod
    def load(cls, path: str | Path) -> "ValidityReport":
        """Read what `save` wrote; raises `DirectionsError` for anything else."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DirectionsError(f"no validity report at {path}: {error}") from None
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise DirectionsError(f"{path} is no validity report (its format must be {FORMAT!r})")
        sites = []
        for site in raw["sites"]:
            behaviour = site.pop("behaviour")
            sites.append(SiteValidity(**site, behaviour=None if behaviour is None else BehaviourEvidence(**behaviour)))
        return cls(
            raw["name"],
            raw["found_by"],
            raw["held_out"],
            tuple(sites),
            raw["similarity"],
            tuple(Doubt(**warning) for warning in raw["warnings"]),
        )


def _sites(n: int) -> str:
    return "1 other site" if n == 1 else f"{n} other sites"


def validity_path(directions: str | Path) -> Path:
    """Where the report on a directions file lies: `caps.safetensors` → `caps.validity.json`."""
    return Path(directions).with_suffix(".validity.json")


DISAGREEING = 75.0
"""Principal angle in degrees beyond which two finders' directions have next to nothing in common."""


def doubts(site: SiteValidity, rests_on_behaviour: bool) -> list[Doubt]:
    """What the numbers at one site give reason to doubt, by rule.

    `rests_on_behaviour`: the sides differ by what the model was told, so only scored behaviour can speak for them.
    """
    found: list[Doubt] = []

    def doubt(code: str, text: str, grave: bool, about: str = "") -> None:
        found.append(Doubt(code, f"{site.site}: {text}", grave, site.site, about))

    interval = f"AUC {site.auc:.2f}, interval {site.auc_low:.2f} to {site.auc_high:.2f}"
    if site.auc_high < 0.5:
        doubt("reversed", f"the negative side projects higher than the positive ({interval}): the sign is wrong", True)
    elif site.auc_low <= 0.5:
        doubt("chance", f"it does not tell held-out chats apart better than chance ({interval})", True)
    elif site.auc < WEAK_AUC:
        doubt("weak", f"it tells held-out chats apart only weakly ({interval})", False)
    if site.auc_with_system_prompts is not None and site.auc_with_system_prompts - site.auc > 0.2:
        doubt(
            "prompt_not_behaviour",
            f"it separates chats by the system prompt they were given (AUC {site.auc_with_system_prompts:.2f}) far "
            f"better than "
            f"by what was answered (AUC {site.auc:.2f}): it is about being told, not about doing",
            False,
        )
    if site.p_shuffled > 0.05:
        doubt(
            "shuffled",
            f"shuffled labels separate the sides as far in {site.p_shuffled:.0%} of shuffles",
            site.auc_low <= 0.5,
        )
    if site.share_in_largest > CONCENTRATED:
        doubt(
            "concentrated",
            f"{site.share_in_largest:.0%} of its squared norm lies in {len(site.largest_dimensions)} dimensions "
            f"({', '.join(map(str, site.largest_dimensions))}): massive activations may have got in",
            False,
        )
    for other, angles in site.angles.items():
        if min(angles) > DISAGREEING:
            text = (
                f"it has next to nothing in common with {other} ({min(angles):.0f} degrees apart; chance is about 90)"
            )
            doubt("disagreement", text, False, other)
    if site.behaviour is not None:
        found.extend(_behaviour_doubts(site, site.behaviour, rests_on_behaviour))
    elif rests_on_behaviour:
        text = "its sides differ by what the model was told, and its projection was compared with no scored behaviour"
        doubt("no_behaviour", text, True)
    return found


def _behaviour_doubts(site: SiteValidity, seen: BehaviourEvidence, rests_on_behaviour: bool) -> list[Doubt]:
    if seen.r is None or seen.low is None or seen.high is None:
        text = f"{seen.name} does not vary over the {seen.n} generations, so nothing correlates with it: no evidence"
        return [Doubt("behaviour_constant", f"{site.site}: {text}", rests_on_behaviour, site.site)]
    if seen.low <= 0:
        text = (
            f"its projection does not go with {seen.name} on the model's own generations (r {seen.r:.2f}, interval "
            f"{seen.low:.2f} to {seen.high:.2f}, n {seen.n})"
        )
        return [Doubt("behaviour", f"{site.site}: {text}", rests_on_behaviour or seen.high < 0, site.site)]
    return []
