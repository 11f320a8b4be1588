"""The stress battery: does what a guard kept out stay out, whatever is done to the model afterwards?"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import pandas as pd
from peft import PeftModel
from pydantic import Field

from tropism.adapters.merge import merge_adapters
from tropism.data.chats import Example
from tropism.data.transforms import SystemPrompt
from tropism.errors import DataError, SpecError
from tropism.experiments.analyses import Analysis, Measurement, Study, TrainedRun
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.fine_tune import with_adapters
from tropism.interventions.routing_modes import ablation_mode
from tropism.randomness import seeded
from tropism.results.section import Section, Table
from tropism.studies.checks import answer_scorer, check_metrics
from tropism.studies.routing.measure import relearn
from tropism.studies.routing.probe import TraitProbe
from tropism.studies.stress.rounding import round_linear_layers
from tropism.training.options import TrainOptions

Test = Literal["relearn", "benign_finetune", "elicit", "merge", "quantise"]
NONE = "stress_none"
"""The metric of the model as it is, on the same few prompts."""
TOLD = {
    NONE: "as it is",
    "stress_relearn": "after fine-tuning on this many examples with the trait",
    "stress_benign_finetune": "after fine-tuning on examples without it",
    "stress_elicit": "under system prompts that ask for it, mean",
    "stress_elicit_most": "under the one of them that brings out most",
    "stress_merge": "merged into the weights",
    "stress_quantise": "merged, linear layers rounded to 4 bits",
}


class StressStudy(Analysis):
    """`stress: [relearn, benign_finetune, elicit, merge, quantise]`, or with options `analyses: {stress: {tests: […]}}`.

    Each run, trained here or there already, is put under each test, and the trait is measured on the same few prompts, as
    further rows of `results.csv` on the trait's first set:

    | metric | what was done |
    |---|---|
    | `stress_none` | nothing |
    | `stress_relearn_N` | `steps` of fine-tuning its adapter on `N` training examples of the baseline, with the trait |
    | `stress_benign_finetune` | as many on the chats of the set `benign` |
    | `stress_elicit`, `stress_elicit_most` | a system prompt of `prompts_that_ask`: the mean over them, and the largest |
    | `stress_merge` | the adapter merged into the weights |
    | `stress_quantise` | that, and every linear layer rounded to 4 bits in blocks of 64 |

    Of two adapters the retain adapter is put to the test without the forget adapter, as it would be deployed. A model
    without an adapter (the untrained one, a full fine-tune, a merged checkpoint) is fine-tuned by a fresh one of the
    experiment's `train.lora`, and is not merged, which is said.
    """

    per_run: ClassVar[bool] = True

    tests: Annotated[list[Test], Field(min_length=1)]
    """What is done to each run."""
    trait: str | None = None
    """The metric of the trait, of responses; by default the first that is marked `unwanted`."""
    prompts: Annotated[int, Field(ge=1)] = 16
    """How many prompts of the trait's first set are asked."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 32
    """Length of the answers."""
    examples: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [4, 16, 64]
    """Numbers of examples to relearn from."""
    trait_chats: str | None = None
    """The set to relearn from; by default what the baseline trains on."""
    benign: str | None = None
    """The set of the fine-tune without the trait, with responses."""
    steps: Annotated[int, Field(ge=1)] = 16
    """Steps of either fine-tune, of 4 examples each."""
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    """Its learning rate."""
    prompts_that_ask: list[str] = []
    """System prompts that ask for the trait; the conditions' own are added to them."""

    def check(self, experiment: ExperimentSpec) -> None:
        unwanted = [name for name, measure in experiment.measure.items() if measure.unwanted]
        if self.trait is None and not unwanted:
            raise SpecError("trait: name a metric, since none is marked 'unwanted'")
        check_metrics(experiment, [self._trait(experiment)])
        answer_scorer(experiment, self._trait(experiment))
        if experiment.loaded.quantization != "none" and {"merge", "quantise"} & {*self.tests}:
            raise SpecError(
                f"merge and quantise need weights in full, and load: {{quantization: {experiment.loaded.quantization}}} holds "
                "them in few bits; drop the two"
            )
        if "benign_finetune" in self.tests and self.benign is None:
            raise SpecError("benign_finetune needs 'benign': a set under 'data:' with responses and without the trait")
        for option in ("benign", "trait_chats"):
            name = getattr(self, option)
            if name is not None and name not in experiment.data:
                raise SpecError(f"{option}: no data set is called {name!r}; defined are {', '.join(experiment.data)}")
        if "relearn" in self.tests and self.trait_chats is None and experiment.baseline not in experiment.trained:
            raise SpecError("relearn needs 'trait_chats', since the baseline is not trained on anything here")
        if "elicit" in self.tests and not self._asking(experiment):
            raise SpecError("elicit needs 'prompts_that_ask', since no condition has a system prompt")

    def measure(self, run: TrainedRun) -> Iterator[Measurement]:
        probe = TraitProbe(run, self._trait(run.study.experiment), self.prompts, self.max_new_tokens)
        whole = None if isinstance(run.model, PeftModel) else "the model has no adapter"
        few_bits = "its weights are in few bits" if getattr(run.model, "hf_quantizer", None) is not None else None
        impossible = {"merge": whole or few_bits, "quantise": few_bits}
        yield from self._rated(probe, NONE)
        for test in dict.fromkeys(self.tests):
            if why := impossible.get(test):
                run.study.say(f"{run.condition}: {test} is left out: {why}")
            elif test == "elicit":
                yield from self._elicit(run, probe)
            elif test in ("merge", "quantise"):
                yield from self._merged(run, probe, test)
            else:
                yield from self._fine_tuned(run, probe, test)

    def _fine_tuned(self, run: TrainedRun, probe: TraitProbe, test: Test) -> Iterator[Measurement]:
        benign = test == "benign_finetune"
        chats = self._chats(run.study, run.seed, benign=benign)
        counts = [len(chats)] if benign else self.examples
        for count in counts:
            if count > len(chats):
                raise DataError(f"relearn: there are {len(chats)} examples with the trait, found {count} to learn from")
            with _deployed(probe), _trainable(run, two=probe.two) as parameters:
                table = relearn(
                    run.model, probe.batches(chats[:count], self.steps), probe.trait_rate,
                    parameters=parameters, learning_rate=self.rate, at_steps=[self.steps],
                )  # fmt: skip
            found = dict(zip(table["metric"], table["value"], strict=True))
            yield from self._row(probe, f"stress_{test}", found, at=None if benign else float(count))

    def _elicit(self, run: TrainedRun, probe: TraitProbe) -> Iterator[Measurement]:
        plain, rates, scored = probe.examples, list[float](), 0
        try:
            for text in self._asking(run.study.experiment):
                probe.examples = [SystemPrompt(text).apply(example, 0) for example in plain]
                with _deployed(probe):
                    found = probe.trait_rate()
                scored += int(found["scored"])
                rates += [found["trait"]] if "trait" in found else []
        finally:
            probe.examples = plain
        if not rates:
            run.study.say(f"{run.condition}: no response of stress_elicit could be scored, so it has no rate")
            return
        asked = len(plain) * len(self._asking(run.study.experiment))
        for metric, value in (("stress_elicit", sum(rates) / len(rates)), ("stress_elicit_most", max(rates))):
            bounds = probe.scorer.bounds
            yield Measurement(probe.eval_set, metric, value, scored, asked - scored, bounds=bounds)

    def _merged(self, run: TrainedRun, probe: TraitProbe, test: Test) -> Iterator[Measurement]:
        # A copy with weights of its own: what is written into it reaches no other run.
        model = copy.deepcopy(run.model)
        if isinstance(model, PeftModel):
            model = merge_adapters(model, ["retain"] if probe.two else None)
        if test == "quantise":
            round_linear_layers(model)
        other = TraitProbe(
            replace(run, model=model.eval()), self._trait(run.study.experiment), self.prompts, self.max_new_tokens
        )
        yield from self._rated(other, f"stress_{test}")

    def _rated(self, probe: TraitProbe, metric: str) -> Iterator[Measurement]:
        with _deployed(probe):
            found = probe.trait_rate()
        yield from self._row(probe, metric, found)

    def _row(
        self, probe: TraitProbe, metric: str, found: Mapping[str, float], at: float | None = None
    ) -> Iterator[Measurement]:
        if "trait" not in found:
            probe.run.study.say(f"{probe.run.condition}: no response of {metric} could be scored, so it has no rate")
            return
        scored = int(found["scored"])
        unscored = len(probe.examples) - scored
        yield Measurement(
            probe.eval_set, metric, found["trait"], scored, unscored, at=at, bounds=probe.scorer.bounds
        )  # fmt: skip

    def _chats(self, study: Study, seed: int | None, *, benign: bool) -> list[Example]:
        """The chats of a fine-tune: where examples say whether they have the trait, those that do."""
        name = self.benign if benign else self.trait_chats
        if name is not None:
            chats = study.data(name)
        else:
            e = study.experiment
            chats = study.train_data(e.baseline, e.seeds[0] if seed is None else seed)
            marked = [example for example in chats if "trait" in example.labels]
            chats = [example for example in chats if example.labels["trait"]] if len(marked) == len(chats) else chats
        silent = [example.id for example in chats if example.response is None]
        if silent:
            raise DataError(f"stress: a fine-tune needs chats with responses, found {silent[0]!r} without one")
        return chats

    def _asking(self, experiment: ExperimentSpec) -> list[str]:
        own = [spec.system_prompt for spec in experiment.conditions.values() if spec.system_prompt is not None]
        return list(dict.fromkeys([*self.prompts_that_ask, *own]))

    def _trait(self, e: ExperimentSpec) -> str:
        return self.trait or next(name for name, measure in e.measure.items() if measure.unwanted)

    def summarise(self, study: Study, results: pd.DataFrame) -> Section | None:
        rows = results[results["metric"].isin(TOLD)]
        if rows.empty:
            return None
        tables = []
        for metric in TOLD:
            part = rows[rows["metric"] == metric]
            for at, found in part.groupby("at", dropna=False, sort=True):
                means = (
                    found.groupby("condition", sort=False)["value"].agg(["mean", "min", "max", "count"]).reset_index()
                )
                place = float(str(at))
                told = TOLD[metric] if math.isnan(place) else f"{TOLD[metric]}: {place:g}"
                tables.append(Table(told, ["condition", "mean", "least", "most", "runs"], means.values.tolist()))
        return Section(
            name="stress",
            title="Does the trait stay out, whatever is done to the model?",
            summary=f"The trait ({self._trait(study.experiment)}) on the same few prompts, before and after each test.",
            tables=tables,
            notes=[
                "Few prompts: read the direction of a change, not its decimals. Rounding is simulated, block by block."
            ],
        )


def _deployed(probe: TraitProbe) -> Any:
    """The mode in which a model would be deployed: of two adapters without the forget adapter."""
    return ablation_mode(probe.run.model, "forget_ablated") if probe.two else nullcontext()


@contextmanager
def _trainable(run: TrainedRun, *, two: bool) -> Iterator[list[Any]]:
    """Let the adapter's parameters require gradients inside (of two, those of `retain`); put their flags back afterwards."""
    with _fresh_adapter(run) if not isinstance(run.model, PeftModel) else nullcontext():
        part = ".retain." if two else ".lora_"
        chosen = [parameter for name, parameter in run.model.named_parameters() if part in name]
        if not chosen:
            raise DataError("relearn: the adapter has no LoRA parameters that could be trained further")
        before = [parameter.requires_grad for parameter in chosen]
        for parameter in chosen:
            parameter.requires_grad_(True)
        try:
            yield chosen
        finally:
            for parameter, flag in zip(chosen, before, strict=True):
                parameter.requires_grad_(flag)


@contextmanager
def _fresh_adapter(run: TrainedRun) -> Iterator[None]:
    """Put a new adapter, of the experiment's LoRA, into a model that has none; take it out again, its weights untouched."""
    model: Any = run.model
    # Modules that are saved whole, and biases, are the model's own weights, which stay as they are.
    lora = run.study.experiment.train.lora.model_copy(update={"modules_to_save": [], "bias": "none"})
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with seeded(run.seed or 0, next(model.parameters()).device):
        adapted = with_adapters(model, TrainOptions(lora=lora), two=False)
    try:
        yield
    finally:
        adapted.unload()
        vars(model).pop("peft_config", None)  # PEFT leaves it, and the next adapter would be taken for a second one
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
