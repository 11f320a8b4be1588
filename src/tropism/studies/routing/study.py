"""The routing study: what each adapter holds of a trait, beyond the chats that the metrics are taken on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pandas as pd
from pydantic import Field

from tropism.errors import DataError, SpecError
from tropism.experiments.analyses import Analysis, Measurement, Study, TrainedRun
from tropism.experiments.file.spec import ExperimentSpec
from tropism.interventions.routing_modes import ablation_mode
from tropism.names import run_name
from tropism.results.rules import SUPPORTED
from tropism.results.section import Figure, Section
from tropism.studies.checks import check_conditions, check_metrics, response_scorer, scorer_of
from tropism.studies.routing import figures, rules, section
from tropism.studies.routing.geometry import lora_geometry
from tropism.studies.routing.measure import bos_prompt, forget_scale_curve, relearn
from tropism.studies.routing.probe import TraitProbe

GEOMETRY, SCALES, RELEARNING = "geometry.csv", "forget_scale.csv", "relearning.csv"
RELEARN_AT = (0, 1, 2, 4, 8, 16, 32, 64)
KINDS = {"trait": True, "benign": False}
"""What is relearned from: training examples with the trait, and without."""
AT_SCALE = "trait_at_scale"
"""The metric of the forget-scale curve; its `at` is the scale."""
Share = Annotated[float, Field(ge=0, le=1)]


class RoutingStudy(Analysis):
    """`analyses: {routing: {...}}`: does routing put the trait into the forget adapter, and only there?

    `trait` names a metric that scores responses; its first evaluation set is the one asked about. `routed`, `partial`,
    `unrouted`, `controls`, `filtered` and `recall` name conditions. The rules are in `rules.py` beside this file. It
    measures every run, as further rows of `results.csv` (`mode` as everywhere; a model without two adapters has only
    `full`):

    | metric | eval set | what |
    |---|---|---|
    | `trait_from_bos` | `bos` | the trait in texts sampled from BOS alone, at temperature 1 |
    | `trait_on_prefix` | the trait's | the trait in the continuation of a reference answer's first tokens |
    | `trait_at_scale_S` | the trait's | the trait with the forget adapter scaled by `S`; also `forget_scale.csv` |
    | `relearned_K_N_at_S` | the trait's | the trait in the model without its forget adapter, after `S` steps of \
fine-tuning its retain adapter on `N` training examples with the trait (`K` trait) or without (benign); also \
`relearning.csv` |
    | `geometry_cosine`, `geometry_overlap`, `geometry_overlap_null`, `geometry_outside` | `weights` | means over weights \
of `|cosine|` and of the overlaps, the null's overlaps, and the share of weights with a p-value of at most 0.05; all of it \
in `geometry.csv` |
    """

    per_run: ClassVar[bool] = True
    summary_only: ClassVar[frozenset[str]] = frozenset({"recall"})

    trait: str = "caps_rate"
    """The metric of the trait."""
    beside: list[str] = []
    """Further metrics for the figure of modes, each on its first evaluation set: the wanted skill, say, or the loss."""
    routed: str = "routed"
    """The condition with gradient routing and full labels."""
    partial: str | None = None
    """The condition with routing and partial labels."""
    unrouted: str = "baseline"
    """The condition without routing."""
    controls: list[str] = []
    """Control conditions, such as one with random labels."""
    filtered: str | None = None
    """The condition trained without the labelled examples."""
    recall: dict[str, dict[str, Share]] = {}
    """Curves over label recall: a name → conditions, each with the share of the trait's examples that it labels."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """How much of the trait rate counts as none."""
    near: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Below this, a cosine and an overlap beyond the null's count as near orthogonal."""
    prompts: Annotated[int, Field(ge=1)] = 8
    """How many prompts of the evaluation set the prefix, the scales and relearning are measured on."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 24
    """Length of the texts sampled for the prefix, BOS and scale measurements."""
    bos_samples: Annotated[int, Field(ge=0)] = 8
    """Texts sampled from BOS alone; 0 leaves the measurement out."""
    prefix_tokens: Annotated[int, Field(ge=0)] = 4
    """How much of the reference answer the model is given; 0 leaves the measurement out."""
    scales: list[Share] = [0.0, 0.5, 1.0]
    """Scales of the forget adapter to measure at."""
    draws: Annotated[int, Field(ge=19)] = 200
    """Pairs of random adapters in the null of the geometry."""
    relearn: list[Annotated[int, Field(ge=1)]] = []
    """Numbers of training examples to relearn from; empty: no relearning."""
    relearn_steps: Annotated[int, Field(ge=1)] = 16
    """Steps of relearning."""
    relearn_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    """Learning rate of relearning."""

    def check(self, experiment: ExperimentSpec) -> None:
        check_conditions(experiment, self._conditions())
        for name, curve in self.recall.items():
            if len(set(curve.values())) < max(2, len(curve)):
                found = ", ".join(f"{condition} at {share:g}" for condition, share in curve.items()) or "none"
                raise SpecError(
                    f"recall: the curve {name!r} needs two conditions or more, each at another share, found {found}"
                )
        check_metrics(experiment, (self.trait, *self.beside))
        response_scorer(experiment, self.trait)

    def measure(self, run: TrainedRun) -> Iterator[Measurement]:
        probe = TraitProbe(run, self.trait, self.prompts, self.max_new_tokens)
        if self.bos_samples:
            from_bos = [bos_prompt(run.study.tokenizer)] * self.bos_samples
            yield from probe.by_mode("trait_from_bos", "bos", from_bos, temperature=1.0)
        if self.prefix_tokens:
            yield from probe.by_mode("trait_on_prefix", probe.eval_set, probe.prefixes(self.prefix_tokens))
        if not probe.two:
            return
        yield from self._geometry(run)
        if self.scales:
            curve = forget_scale_curve(run.model, probe.trait_rate, self.scales)
            curve.to_csv(run.folder / SCALES, index=False)
            yield from probe.along(curve, "scale", AT_SCALE)
        if self.relearn:
            yield from self._relearning(run, probe)

    def _geometry(self, run: TrainedRun) -> Iterator[Measurement]:
        table = lora_geometry(run.model, draws=self.draws)
        table.to_csv(run.folder / GEOMETRY, index=False)
        # A weight where an adapter is zero has no angle to the other.
        known = table.dropna(subset=["cosine"])
        if known.empty:
            run.study.say(f"{run.condition}: an adapter is zero at every weight, so there is no geometry")
            return
        means = {
            rules.COSINE: known["cosine"].abs(),
            rules.OVERLAP: known[["row_overlap", "column_overlap"]].mean(axis=1),
            rules.OVERLAP_NULL: known[["row_overlap_null", "column_overlap_null"]].mean(axis=1),
            "geometry_outside": (known[["cosine_p", "row_overlap_p", "column_overlap_p"]] <= 0.05).any(axis=1),
        }
        for metric, values in means.items():
            unknown = len(table) - len(known)
            yield Measurement(
                "weights", metric, float(values.mean()), len(known), unknown, bounds=rules.GEOMETRY
            )  # fmt: skip

    def _relearning(self, run: TrainedRun, probe: TraitProbe) -> Iterator[Measurement]:
        assert run.seed is not None  # the untrained model has no adapters
        at = [step for step in RELEARN_AT if step < self.relearn_steps] + [self.relearn_steps]
        # The unrouted condition's examples: they hold the trait, whatever the run under test was shown.
        examples = run.study.train_data(self.unrouted, run.seed)
        tables = []
        for kind, wanted in KINDS.items():
            chosen = [e for e in examples if e.labels.get("trait") is wanted]
            for n in self.relearn:
                if n > len(chosen):
                    raise DataError(
                        f"relearn: must be at most the {len(chosen)} {kind} examples that {self.unrouted!r} trains on, "
                        f"found {n}"
                    )
                with ablation_mode(run.model, "forget_ablated"), _trainable(run.model, ".retain.") as parameters:
                    table = relearn(
                        run.model, probe.batches(chosen[:n], self.relearn_steps), probe.trait_rate,
                        parameters=parameters, learning_rate=self.relearn_rate, at_steps=at,
                    )  # fmt: skip
                tables.append(table.assign(data=kind, examples=n))
                yield from probe.along(table, "step", _relearned(kind, n))
        pd.concat(tables).to_csv(run.folder / RELEARNING, index=False)

    def summarise(self, study: Study, results: pd.DataFrame) -> Section:
        e = study.experiment
        rates = rules.Rates(results, self.trait, e.measure[self.trait].on[0], scorer_of(e, self.trait).bounds)
        arms = rules.Arms(self.routed, self.partial, self.unrouted, tuple(self.controls), self.filtered)
        claims = rules.claims(rates, arms, margin=self.margin, near=self.near)
        supported = sum(claim.verdict == SUPPORTED for claim in claims)
        tables = [section.modes_table(rates)]
        if self.recall:
            tables.append(section.recall_table(rates, self.recall, arms))
        return Section(
            name="routing",
            title="Does routing put the trait into a part that can be removed?",
            summary=f"{supported} of {len(claims)} claims supported. {section.in_words(rates, arms)}".strip(),
            claims=claims,
            tables=tables,
            figures=list(self._figures(study, rates)),
            lead="routing-trait",
            notes=[
                f"Intervals are of 95 %, over seeds, of contrasts within a seed; the margin is {self.margin:g}.",
                "The prefix, the texts from BOS and the forget scale are measured on few prompts: read their "
                "direction, not their decimals.",
            ],
        )

    def _figures(self, study: Study, rates: rules.Rates) -> Iterator[Figure]:
        folder = study.folder / "figures"
        shown = self._shown(study.experiment, rates)
        figures.draw_trait(shown[shown["metric"] == self.trait], self.trait, folder, "routing-trait")
        yield Figure("routing-trait", "The trait of every condition, with both adapters and with one of them")
        figures.draw_modes(shown, [self.trait, *self.beside], folder, "routing-modes")
        yield Figure("routing-modes", "Every condition in every mode; means over seeds, with 95 % intervals")
        by_recall = section.recall_curves(rates, self.recall)
        if not by_recall.empty:
            label = "share of the trait's examples that is labelled"
            figures.draw_curves(by_recall, "recall", label, "trait rate", folder, "routing-recall")
            yield Figure("routing-recall", "The trait by label recall, with and without the forget adapter")
        curve = _curve(rates, AT_SCALE, "scale")
        if not curve.empty:
            figures.draw_curves(curve, "scale", "scale of the forget adapter", "trait rate", folder, "routing-scale")
            yield Figure("routing-scale", "The trait as the forget adapter is turned down")
        for kind in KINDS:
            for n in self.relearn:
                curve = _curve(rates, _relearned(kind, n), "step")
                if not curve.empty:
                    name = f"routing-relearn-{kind}-{n}"
                    figures.draw_curves(curve, "step", "step of fine-tuning", "trait rate", folder, name, steps=True)
                    yield Figure(name, f"Fine-tuning the model without its forget adapter on {n} {kind} examples")
        geometry = _first_geometry(study, self.routed)
        if geometry is not None:
            seed, path = geometry
            figures.draw_geometry(pd.read_csv(path), folder, "routing-geometry")
            yield Figure("routing-geometry", f"The two adapters of {self.routed}, seed {seed}, against random adapters")

    def _shown(self, e: ExperimentSpec, rates: rules.Rates) -> pd.DataFrame:
        """Every metric of the figure of modes on its first evaluation set: `arm, mode, metric, value, low, high`."""
        tables = []
        for metric in (self.trait, *self.beside):
            held = rates.results
            chosen = (held["metric"] == metric) & (held["eval_set"] == e.measure[metric].on[0])
            rows = held[chosen].rename(columns={"condition": "arm"})
            bounds = scorer_of(e, metric).bounds
            tables.append(section.with_intervals(rows, ["arm", "mode", "metric"], bounds))
        return pd.concat(tables, ignore_index=True)

    def _conditions(self) -> Sequence[str]:
        on_curves = (condition for curve in self.recall.values() for condition in curve)
        named = (self.routed, self.partial, self.unrouted, *self.controls, self.filtered, *on_curves)
        return [name for name in named if name is not None]


@contextmanager
def _trainable(model: Any, part: str) -> Iterator[list[Any]]:
    """Let the adapter's parameters require gradients inside; put their flags back afterwards."""
    chosen = [p for name, p in model.named_parameters() if part in name]
    before = [p.requires_grad for p in chosen]
    for p in chosen:
        p.requires_grad_(True)
    try:
        yield chosen
    finally:
        for p, flag in zip(chosen, before, strict=True):
            p.requires_grad_(flag)


def _relearned(kind: str, examples: int) -> str:
    """The metric of a relearning curve; its `at` is the step."""
    return f"relearned_{kind}_{examples}_at"


def _curve(rates: rules.Rates, metric: str, column: str) -> pd.DataFrame:
    """A metric along its place `at`: `arm, column, value, low, high`, by condition."""
    rows = rates.results[rates.results["metric"] == metric]
    named = rows.rename(columns={"condition": "arm", "at": column})
    return section.with_intervals(named, ["arm", column], rates.bounds)


def _first_geometry(study: Study, condition: str) -> tuple[int, Path] | None:
    for seed in study.experiment.seeds:
        path = study.folder / run_name(condition, seed) / GEOMETRY
        # A run that was begun anew and not finished may have left a table behind.
        if path.is_file() and (path.parent / "DONE.json").is_file() and pd.read_csv(path)["cosine"].notna().any():
            return seed, path
    return None
