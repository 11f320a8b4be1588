"""The routing study: what each adapter holds of a trait, beyond the chats that the metrics are taken on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pandas as pd
from peft import PeftModel
from pydantic import Field

from tropism.data.collate import pad
from tropism.data.generation import GenerateOptions, continue_rendered, generate
from tropism.data.render import render
from tropism.errors import DataError, SpecError
from tropism.evals.scorers.base import ResponseScorer, Sample
from tropism.evals.scorers.registry import load_scorer
from tropism.experiments.analyses import Analysis, Measurement, Study, TrainedRun
from tropism.experiments.file.spec import ExperimentSpec
from tropism.interventions.routing_modes import MODES, ablation_mode
from tropism.names import run_name
from tropism.results.section import SUPPORTED, Figure, Section
from tropism.studies.routing import figures, geometry_figure, rules
from tropism.studies.routing.geometry import lora_geometry
from tropism.studies.routing.measure import bos_prompt, forget_scale_curve, prefix_prompt, relearn, responses_by_mode

GEOMETRY, SCALES, RELEARNING = "geometry.csv", "forget_scale.csv", "relearning.csv"
RELEARN_AT = (0, 1, 2, 4, 8, 16, 32, 64)
Share = Annotated[float, Field(ge=0, le=1)]


class RoutingStudy(Analysis):
    """`analyses: {routing: {...}}`: does routing put the trait into the forget adapter, and only there?

    `trait` names a metric that scores responses; its first evaluation set is the one asked about. `routed`, `partial`,
    `unrouted`, `controls`, `filtered` and `recall` name conditions; the rules are in `rules.py` beside this file. Of every run it
    measures, as further rows of `results.csv` (`mode` as everywhere; a model without two adapters has `full` alone):

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
    """Further metrics for the figure of modes, each on its first evaluation set: the wanted skill, the loss."""
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
    """How much of the reference answer is given; 0 leaves the measurement out."""
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
        for name in self._conditions():
            if name not in experiment.conditions:
                raise SpecError(f"no condition is called {name!r}; defined are {', '.join(experiment.conditions)}")
        for name, curve in self.recall.items():
            if len(set(curve.values())) < max(2, len(curve)):
                found = ", ".join(f"{condition} at {share:g}" for condition, share in curve.items()) or "none"
                raise SpecError(
                    f"recall: the curve {name!r} needs two conditions or more, each at another share, found {found}"
                )
        for metric in (self.trait, *self.beside):
            if metric not in experiment.measure:
                raise SpecError(f"no metric is called {metric!r}; defined are {', '.join(experiment.measure)}")
        trait = experiment.measure[self.trait]
        if not isinstance(load_scorer(trait.scorer, trait.options()), ResponseScorer):
            raise SpecError(f"trait: must be a metric that scores responses, found {self.trait!r} ({trait.scorer})")

    def measure(self, run: TrainedRun) -> Iterator[Measurement]:
        probe = _Probe(self, run)
        if self.bos_samples:
            yield from probe.by_mode("trait_from_bos", "bos", [bos_prompt(run.study.tokenizer)] * self.bos_samples, 1.0)
        if self.prefix_tokens:
            yield from probe.by_mode("trait_on_prefix", probe.eval_set, probe.prefixes(), 0.0)
        if not probe.two:
            return
        yield from self._geometry(run)
        if self.scales:
            curve = forget_scale_curve(run.model, probe.trait_rate, self.scales)
            curve.to_csv(run.folder / SCALES, index=False)
            yield from probe.along(curve, "scale", "trait_at_scale_")
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
            yield Measurement("weights", metric, float(values.mean()), len(known), len(table) - len(known))

    def _relearning(self, run: TrainedRun, probe: "_Probe") -> Iterator[Measurement]:
        assert run.seed is not None  # the untrained model has no adapters
        at = [step for step in RELEARN_AT if step < self.relearn_steps] + [self.relearn_steps]
        examples = run.study.train_data(self.unrouted, run.seed)
        tables = []
        for kind, wanted in (("trait", True), ("benign", False)):
            chosen = [e for e in examples if e.labels.get("trait") is wanted]
            for n in self.relearn:
                if n > len(chosen):
                    raise DataError(
                        f"relearn: must be at most the {len(chosen)} {kind} examples that {self.unrouted!r} trains on, found {n}"
                    )
                with ablation_mode(run.model, "forget_ablated"), _trainable(run.model, ".retain.") as parameters:
                    table = relearn(
                        run.model, probe.batches(chosen[:n], self.relearn_steps), probe.trait_rate,
                        parameters=parameters, learning_rate=self.relearn_rate, at_steps=at,
                    )  # fmt: skip
                tables.append(table.assign(data=kind, examples=n))
                yield from probe.along(table, "step", f"relearned_{kind}_{n}_at_")
        pd.concat(tables).to_csv(run.folder / RELEARNING, index=False)

    def summarise(self, study: Study, results: pd.DataFrame) -> Section:
        e = study.experiment
        rates = rules.Rates(results, self.trait, e.measure[self.trait].on[0])
        arms = rules.Arms(self.routed, self.partial, self.unrouted, tuple(self.controls), self.filtered)
        claims = rules.claims(rates, arms, margin=self.margin, near=self.near)
        supported = sum(claim.verdict == SUPPORTED for claim in claims)
        return Section(
            name="routing",
            title="Does routing put the trait into a part that can be removed?",
            summary=f"{supported} of {len(claims)} claims supported. {rules.in_words(rates, arms)}".strip(),
            claims=claims,
            tables=[rules.modes_table(rates), *([rules.recall_table(rates, self.recall, arms)] if self.recall else [])],
            figures=list(self._figures(study, results, rates)),
            lead="routing-trait",
            notes=[
                f"Intervals are of 95 %, over seeds, of contrasts within a seed; the margin is {self.margin:g}.",
                "The prefix, the texts from BOS and the forget scale are measured on few prompts: read their "
                "direction, not their decimals.",
            ],
        )

    def _figures(self, study: Study, results: pd.DataFrame, rates: rules.Rates) -> Iterator[Figure]:
        folder, e = study.folder / "figures", study.experiment
        metrics = [self.trait, *self.beside]
        on_first = results["eval_set"] == results["metric"].map({m: e.measure[m].on[0] for m in metrics})
        shown = results[on_first & results["metric"].isin(metrics)].rename(columns={"condition": "arm"})
        trait = shown[shown["metric"] == self.trait]
        figures.draw_trait(rules.with_intervals(trait, ["arm", "mode"], rate=True), self.trait, folder, "routing-trait")
        yield Figure("routing-trait", "The trait of every condition, with both adapters and with one of them")
        figures.draw_modes(rules.with_intervals(shown, ["arm", "mode", "metric"]), metrics, folder, "routing-modes")
        yield Figure("routing-modes", "Every condition in every mode; means over seeds, with 95 % intervals")
        by_recall = rules.recall_curves(rates, self.recall)
        if not by_recall.empty:
            label = "share of the trait's examples that is labelled"
            figures.draw_curves(by_recall, "recall", label, "trait rate", folder, "routing-recall")
            yield Figure("routing-recall", "The trait by label recall, with and without the forget adapter")
        curves = _held(results, "trait_at_scale_", "scale")
        if not curves.empty:
            table = rules.with_intervals(curves, ["arm", "scale"], rate=True)
            figures.draw_curves(table, "scale", "scale of the forget adapter", "trait rate", folder, "routing-scale")
            yield Figure("routing-scale", "The trait as the forget adapter is turned down")
        for kind in ("trait", "benign"):
            for n in self.relearn:
                table = _held(results, f"relearned_{kind}_{n}_at_", "step")
                if not table.empty:
                    name = f"routing-relearn-{kind}-{n}"
                    drawn = rules.with_intervals(table, ["arm", "step"], rate=True)
                    figures.draw_curves(drawn, "step", "step of fine-tuning", "trait rate", folder, name, steps=True)
                    yield Figure(name, f"Fine-tuning the model without its forget adapter on {n} {kind} examples")
        geometry = _first_geometry(study, self.routed)
        if geometry is not None:
            seed, path = geometry
            geometry_figure.draw(pd.read_csv(path), folder, "routing-geometry")
            yield Figure("routing-geometry", f"The two adapters of {self.routed}, seed {seed}, against random adapters")

    def _conditions(self) -> Sequence[str]:
        on_curves = (condition for curve in self.recall.values() for condition in curve)
        named = (self.routed, self.partial, self.unrouted, *self.controls, self.filtered, *on_curves)
        return [name for name in named if name is not None]


class _Probe:
    """The trait rate of one run's model, as it is when asked."""

    def __init__(self, options: RoutingStudy, run: TrainedRun) -> None:
        e = run.study.experiment
        measure = e.measure[options.trait]
        scorer = load_scorer(measure.scorer, measure.options())
        assert isinstance(scorer, ResponseScorer)  # by check
        self.scorer, self.options, self.run = scorer, options, run
        self.eval_set = measure.on[0]
        self.examples = run.study.data(self.eval_set)[: options.prompts]
        self.template_kwargs = e.template_kwargs
        self.two = isinstance(run.model, PeftModel) and {"retain", "forget"} <= set(run.model.peft_config)

    def by_mode(self, metric: str, eval_set: str, rows: Sequence[Any], temperature: float) -> Iterator[Measurement]:
        """The trait in the continuations of rendered prompts, in every mode that the model has."""
        study, seed = self.run.study, self.run.seed or 0
        wanted = self._generation(temperature)
        if self.two:
            texts = responses_by_mode(self.run.model, study.tokenizer, rows, wanted, seed=seed)
        else:
            texts = {MODES[0]: continue_rendered(self.run.model, study.tokenizer, rows, wanted, seed=seed)}
        for mode, responses in texts.items():
            values = self._scores([Sample(str(i), (), text) for i, text in enumerate(responses)])
            if not values:
                study.say(f"{self.run.condition}, {mode}: no text of {metric} could be scored, so it has no rate")
                continue
            unscored = len(responses) - len(values)
            yield Measurement(eval_set, metric, sum(values) / len(values), len(values), unscored, mode)

    def trait_rate(self) -> Mapping[str, float]:
        """`trait` and how many responses were `scored`; no `trait` where none could be."""
        prompts = [example.prompt for example in self.examples]
        responses = generate(
            self.run.model,
            self.run.study.tokenizer,
            prompts,
            self._generation(0.0),
            template_kwargs=self.template_kwargs,
        )
        pairs = zip(self.examples, responses, strict=True)
        values = self._scores([Sample(e.id, e.prompt, text, e.target, e.labels) for e, text in pairs])
        rate = {"trait": sum(values) / len(values)} if values else {}
        return {"scored": len(values), **rate}

    def along(self, table: pd.DataFrame, column: str, prefix: str) -> Iterator[Measurement]:
        """The rows of a table of `trait_rate`, one a value of `column`, which ends the metric's name."""
        for at, part in table.groupby(column):
            found = dict(zip(part["metric"], part["value"], strict=True))
            if "trait" not in found:
                self.run.study.say(
                    f"{self.run.condition}: no response of {prefix}{at:g} could be scored, so it has no rate"
                )
                continue
            scored = int(found["scored"])
            yield Measurement(self.eval_set, f"{prefix}{at:g}", found["trait"], scored, len(self.examples) - scored)

    def prefixes(self) -> list[Any]:
        tokenizer = self.run.study.tokenizer
        rendered = [
            render(tokenizer, e.chat, template_kwargs=self.template_kwargs, where=f"{self.eval_set}, {e.id}")
            for e in self.examples
        ]
        return [prefix_prompt(tokenizer, row, self.options.prefix_tokens) for row in rendered]

    def batches(self, examples: Sequence[Any], steps: int, size: int = 4) -> Iterator[dict[str, Any]]:
        """One batch a step, cycling through the examples in their order."""
        tokenizer, device = self.run.study.tokenizer, next(self.run.model.parameters()).device
        rows = [render(tokenizer, e.chat, template_kwargs=self.template_kwargs) for e in examples]
        for step in range(steps):
            chosen = [rows[(step * size + i) % len(rows)] for i in range(min(size, len(rows)))]
            batch = pad(chosen, tokenizer.pad_token_id)
            yield {name: values.to(device) for name, values in batch.items() if name != "position_ids"}

    def _generation(self, temperature: float) -> GenerateOptions:
        given = self.run.study.experiment.generate.model_dump()
        return GenerateOptions(**{**given, "temperature": temperature, "max_new_tokens": self.options.max_new_tokens})

    def _scores(self, samples: Sequence[Sample]) -> list[float]:
        scores = [self.scorer.score(sample) for sample in samples]
        return [score.value for score in scores if score.value is not None]


@contextmanager
def _trainable(model: Any, part: str) -> Iterator[list[Any]]:
    """The adapter's parameters, which require gradients inside; everything else is as it was."""
    chosen = [p for name, p in model.named_parameters() if part in name]
    before = [p.requires_grad for p in chosen]
    for p in chosen:
        p.requires_grad_(True)
    try:
        yield chosen
    finally:
        for p, flag in zip(chosen, before, strict=True):
            p.requires_grad_(flag)


def _held(results: pd.DataFrame, prefix: str, column: str) -> pd.DataFrame:
    """The rows of a family of metrics, what follows its prefix as a number in `column`."""
    rows = results[results["metric"].str.startswith(prefix)]
    numbers = rows["metric"].str.removeprefix(prefix).astype(float)
    return rows.assign(**{column: numbers}).rename(columns={"condition": "arm"})


def _first_geometry(study: Study, condition: str) -> tuple[int, Path] | None:
    for seed in study.experiment.seeds:
        path = study.folder / run_name(condition, seed) / GEOMETRY
        # A run that was begun anew and not finished may have left a table behind.
        if path.is_file() and (path.parent / "DONE.json").is_file() and pd.read_csv(path)["cosine"].notna().any():
            return seed, path
    return None
