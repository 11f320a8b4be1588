"""The model card of a pushed adapter: what was trained, what was measured, what to beware of, how to make it again."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pandas as pd
import yaml
from huggingface_hub import ModelCardData

from tropism.adapters.folder import PREFIX, open_adapter
from tropism.errors import RunFolderError
from tropism.experiments.file.guards import parts, uses
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.store import RunKey
from tropism.names import BASE, VERSION
from tropism.results.caveats import caveats
from tropism.results.folder import ExperimentFolder
from tropism.results.roles import Role, role_of
from tropism.results.summary import baseline_name, summary_table
from tropism.results.text import EM_DASH, count, rate, span, visible, words

_MARK = {"unwanted": " (lower is better)", "wanted": " (higher is better)", "": ""}


@dataclass(frozen=True)
class Card:
    """What a card is about: the run, where it is pushed to, and on which model it goes."""

    experiment: ExperimentSpec
    folder: ExperimentFolder
    key: RunKey
    repo: str
    base_model: str
    routed: bool
    """The adapter is the retain adapter alone."""
    start: Path | None = None
    """The adapter that the experiment starts from, where it has one."""

    def __str__(self) -> str:
        """The card as Markdown; raises `RunFolderError` where `results.csv` has no measurement of the run."""
        sections = [self._head(), self._use(), self._trained(), self._measured(), self._beware(), self._again()]
        return f"---\n{self._metadata()}\n---\n\n" + "\n\n".join(sections) + "\n"

    @property
    def mode(self) -> str:
        """The ablation mode whose numbers are this adapter's."""
        return "forget_ablated" if self.routed else "full"

    @cached_property
    def _summary(self) -> pd.DataFrame:
        """Of every run of the experiment."""
        return summary_table(self.folder.results, self.folder.experiment, self.folder.scores, self.folder.look)

    def _guards(self) -> list[str]:
        condition = self.experiment.conditions[self.key.condition]
        return [name for spec in (condition.guard, condition.after) for name, _ in parts(spec)]

    def _metadata(self) -> str:
        tags = ["tropism", "lora", *dict.fromkeys(name.replace("_", "-") for name in self._guards())]
        data = ModelCardData(base_model=self.base_model, library_name="peft", pipeline_tag="text-generation", tags=tags)
        return str(data.to_yaml()).strip()

    def _head(self) -> str:
        e, key = self.experiment, self.key
        lora = e.train_options(key.condition).lora
        modules = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
        named = self._guards()
        guarded = f"with the guard {', '.join(f'`{name}`' for name in named)}" if named else "without a guard"
        text = (
            f"# {key.condition}, seed {key.seed}, of the experiment {e.name}\n\n"
            f"A LoRA adapter (rank {lora.r}, on {modules}) for `{self.base_model}`, fine-tuned {guarded} by Tropism, which "
            f"compares ways to keep an unwanted trait out of a fine-tune. It is one run of the experiment below."
        )
        if self.routed:
            text += (
                "\n\nTraining was routed between two adapters. This is the `retain` adapter alone: the `forget` adapter, into "
                "which the labelled examples were routed, is not here."
            )
        if e.question:
            text += f"\n\n> {as_line(e.question)}"
        note = e.conditions[key.condition].note
        return text + (f"\n\n{as_line(note)}" if note else "")

    def _use(self) -> str:
        start = "" if self.start is None else _merging(self.start, self.repo)
        code = (
            f"from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{self.base_model}")\n'
            f'{start}model = PeftModel.from_pretrained(base, "{self.repo}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{self.base_model}")\n'
        )
        said = (
            f"\n\nThe experiment trained every condition on top of the adapter `{self.experiment.start_from}`, merged into the "
            f"base model; it is in the folder `start_from`, and this adapter is of no use without it."
            if start
            else ""
        )
        return f"## Use\n\n{fenced(code, 'python')}{said}"

    def _trained(self) -> str:
        e, name = self.experiment, self.key.condition
        condition = e.conditions[name]
        named = uses(condition.guard) | uses(condition.after)
        described: dict[str, Any] = {
            "condition": name,
            "seed": self.key.seed,
            "data": e.train_data(name).model_dump(mode="json", exclude_defaults=True),
            "system_prompt": condition.system_prompt,
            "guard": condition.guard,
            "after": condition.after,
            "directions": {
                n: e.directions[n].model_dump(mode="json", exclude_defaults=True)
                for n in sorted(named & set(e.directions))
            },
            "parameter_directions": {n: e.parameter_directions[n] for n in sorted(named & set(e.parameter_directions))},
            "train": e.train_options(name).model_dump(mode="json"),
        }
        text = as_yaml(public({key: value for key, value in described.items() if value not in (None, {})}))
        return f"## What was trained\n\n{fenced(text, 'yaml')}"

    def _measured(self) -> str:
        scores, every = self.folder.scores, self._summary
        seed = self.key.seed
        own = self.folder.results
        own = own[(own["condition"] == self.key.condition) & (own["seed"] == seed) & (own["mode"] == self.mode)]
        if own.empty:
            raise RunFolderError(
                f"results.csv has no measurement of the run {self.key} in the mode {self.mode}; run the experiment again"
            )
        alone = summary_table(own, self.folder.experiment, scores[scores["seed"] == seed])
        rows = [self._row(row, every) for row in alone.to_dict("records")]
        baseline = baseline_name(self.folder.experiment)
        heading = [
            "metric", "asked on", f"this adapter (seed {seed})", "n", "unscored",
            f"{self.key.condition}, all seeds", f"{baseline}, all seeds", "untrained",
        ]  # fmt: skip
        over = sorted({str(row["over"]) for row in alone.to_dict("records") if row["over"]})
        mode = " Of two adapters the retain adapter alone was live (`forget_ablated`)." if self.routed else ""
        text = (
            f"Means with 95 % intervals: this adapter's over {' or '.join(over) or 'nothing'}, so they say nothing of another "
            f"run's; those of all seeds as the note beneath says. `n` is how many responses were scored.{mode}"
        )
        of_seeds = every[(every["condition"] == self.key.condition) & (every["mode"] == self.mode)]
        ran = int(of_seeds["seeds"].max())
        spread = sorted({str(value) for value in of_seeds["over"] if value}) or ["nothing"]
        note = (
            f"All seeds: {count(ran, 'finished seed')} of {self.key.condition}, intervals over {' or '.join(spread)}."
        )
        return f"## What was measured\n\n{text}\n\n{_table(heading, rows)}\n\n{note}"

    def _row(self, row: Mapping[Any, Any], every: pd.DataFrame) -> list[str]:
        same = every[(every["metric"] == row["metric"]) & (every["eval_set"] == row["eval_set"])]

        def of(condition: str, mode: str | None = None) -> str:
            found = same[same["condition"] == condition]
            found = found if mode is None else found[found["mode"] == mode]
            return EM_DASH if found.empty else _value(found.iloc[0].to_dict())

        return [
            words(str(row["metric"])) + _MARK[str(row["mark"])], words(str(row["eval_set"])), _value(row),
            str(row["n"]), str(row["unscored"]), of(self.key.condition, self.mode),
            of(baseline_name(self.folder.experiment)), of(BASE),
        ]  # fmt: skip

    def _beware(self) -> str:
        e, name = self.experiment, self.key.condition
        said = [f"This is seed {self.key.seed}, of {count(len(e.seeds), 'seed')}: another seed gives another adapter."]
        role = role_of(self.folder.experiment, name)
        if role in (Role.BASELINE, Role.CONTROL):
            said.append(f"This condition is the experiment's {role}: it has whatever trait its data teach.")
        if e.conditions[name].system_prompt is not None:
            said.append(
                "It was trained with a system prompt; the evaluation sets have the system prompts that experiment.yaml "
                "gives them, and none otherwise."
            )
        if self._guards():
            said.append("What was kept out is known on the evaluation sets above, and not beyond them.")
        said += caveats(self.folder, self._summary)
        said.append(
            "This card was written by a program from the run's folder; nobody has checked the adapter for any use."
        )
        return "## Caveats\n\n" + "\n".join(f"- {as_line(line)}" for line in said)

    def _again(self) -> str:
        e, environment = self.experiment, self.folder.environment
        versions = environment.get("versions") or {}
        version = versions.get("tropism", VERSION)
        only = ",".join(dict.fromkeys([e.baseline, self.key.condition]))
        command = f"tropism run experiment.yaml --only {only}        # Tropism {version}"
        source, device = environment.get("model") or {}, environment.get("device") or ""
        facts = {
            "tropism": version,
            "seeds of the experiment": ", ".join(map(str, e.seeds)),
            "base model": " ".join(str(part) for part in (self.base_model, source.get("revision") or "") if part),
            "device": str(device.get("kind", "") if isinstance(device, dict) else device),
            "trained and measured": str(environment.get("finished") or environment.get("started") or ""),
            "versions": ", ".join(f"{name} {number}" for name, number in versions.items() if name != "tropism"),
            "data (hash)": ", ".join(f"{name} `{hashed}`" for name, hashed in (environment.get("data") or {}).items()),
        }
        rows = [[name, as_line(value)] for name, value in facts.items() if value]
        return (
            "## Make it again\n\n`experiment.yaml` is the experiment with every default written out; of local files it names "
            f"only the last part.\n\n{fenced(command, 'bash')}\n\n{_table(['', ''], rows)}"
        )


def _merging(start: Path, repo: str) -> str:
    """The lines that put an adapter into the base model as training did.

    PEFT's `merge_and_unload` adds to a weight in place: where the output embedding is the input embedding, an adapter on one
    of them would change both, so there Tropism's own merge, which unties them first, must be used.
    """
    if not _on_embeddings(start):
        return f'base = PeftModel.from_pretrained(base, "{repo}", subfolder="start_from").merge_and_unload()\n'
    return (
        "# not merge_and_unload(): this adapter is on an embedding, which may be tied to the other one\n"
        "from tropism.adapters.merge import merge_adapters\n"
        f'base = merge_adapters(PeftModel.from_pretrained(base, "{repo}", subfolder="start_from"))\n'
    )


def _on_embeddings(adapter: Path) -> bool:
    """Whether an adapter changes an embedding of the input or the output."""
    opened = open_adapter(adapter)
    modules = {key.removeprefix(PREFIX).partition(".lora_")[0].rpartition(".")[2] for key in opened.shapes}
    heads = {"lm_head", "embed_out", "output", "output_layer"}
    return bool(modules & heads) or any(
        part.kind in ("embedding", "tokens", "modules_to_save") for part in opened.parts()
    )


def public(value: Any) -> Any:
    """Plain data without this machine's folders: of an absolute path the last part remains."""
    if isinstance(value, Mapping):
        return {key: public(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [public(held) for held in value]
    if isinstance(value, str) and "\n" not in value:
        if re.match(r"(/|~)[^\s/]*/\S", value):
            return PurePosixPath(value).name
        if PureWindowsPath(value).drive:
            return PureWindowsPath(value).name
    return value


def _value(row: Mapping[Any, Any]) -> str:
    return f"{rate(row['value'])} {span(row['low'], row['high'])}".strip()


def as_line(text: str) -> str:
    """A text on one line, with control characters written out."""
    return " ".join(visible(text).split())


def as_yaml(value: Any) -> str:
    """Plain data as YAML."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)


def fenced(text: str, language: str) -> str:
    """A block of code that its text cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}"


def _table(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
