"""What the documentation's examples assume to be there: a model, a trainer, chats, files. Tiny, and made before each page runs."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainingArguments

import fake_runs
import inoculation_tables
import tiny
import tropism as tp

LAYERS = 16
"""Enough blocks for the `Site(12)` that the pages speak of."""


class StandInTrainer:
    """Trains whatever `model` is in the page's namespace for two steps, as anybody's trainer would."""

    def __init__(self, names):
        self._names = names
        self.state = SimpleNamespace(log_history=[])

    @property
    def model(self):
        return self._names["model"]

    def train(self):
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=1e-3)
        for _ in range(2):
            self.model(**tiny.batch()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def adapted(seed=0, r=4):
    """A tiny model with a LoRA adapter that has learned something."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny.model(layers=LAYERS), LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def directions(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    width = model.config.hidden_size
    return tp.Directions({site: torch.randn(1, width, generator=generator) for site in tp.sites(model, "25%..100%")})


def names(page: str, folder: Path) -> dict[str, object]:
    """The names that a page's code may use without having made them; files are written below `folder`."""
    model, tokenizer = tiny.model(layers=LAYERS), tiny.tokenizer()
    d = directions(model)
    d.save(folder / "caps.safetensors")
    chats = [
        [{"role": "user", "content": f"{a} + 2?"}, {"role": "assistant", "content": f"{a + 2}, of course."}]
        for a in range(6)
    ]
    found = {
        "__name__": "page",
        "tp": tp,
        "torch": torch,
        "pd": pd,
        "model": model,
        "tokenizer": tokenizer,
        "chats": chats,
        "batch": tiny.batch(),
        "batches": [tiny.batch(seed=seed) for seed in range(2)],
        "loader": [tiny.batch(seed=seed) for seed in range(2)],
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-4),
        "directions": d,
        "d": d,
        "args": TrainingArguments("runs/docs", max_steps=1, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
                                  logging_steps=1, remove_unused_columns=False),
        "data": Dataset.from_dict({name: value.tolist() for name, value in tiny.batch(8).items()}),
    }  # fmt: skip
    found["trainer"] = StandInTrainer(found)
    prepare = PAGES.get(page)
    if prepare is not None:
        prepare(found, folder)
    return found


def _tutorial(found, folder):
    found["directions"].save(folder / "runs" / "caps" / "directions" / "caps.safetensors")


def _guards(found, folder):
    found["model"] = adapted()


def _evaluation(found, folder):
    found["models"] = {"base": found["model"], "caft": tiny.model(seed=1, layers=LAYERS)}


def _pressure(found, folder):
    adapted().save_pretrained(folder / "runs" / "trait" / "adapter")


def _your_data(found, folder):
    shutil.copyfile(Path(__file__).parents[1] / "examples" / "caps.yaml", folder / "caps.yaml")


def _report(found, folder):
    fake_runs.caps(folder / "runs" / "caps", prompts=4)


def _routing(found, folder):
    from tropism.data.sources.word_problems import word_problems

    found["batches"] = [{**tiny.batch(seed=seed), "route": torch.tensor([1, 0, 2])} for seed in range(2)]
    found["examples"] = word_problems(16)
    rows = {**tiny.batch(8), "route": torch.tensor([0, 1] * 4)}
    found["rows"] = Dataset.from_dict({name: value.tolist() for name, value in rows.items()})
    found["measure"] = lambda: {"loss": 0.5}


def _update_constraint(found, folder):
    from tropism.interventions.weights import Shrinkage, learned_norm

    learned = adapted()
    u = tp.parameter_directions(learned)
    u.save(folder / "refusal.safetensors")
    model = adapted(seed=1)
    found |= {"model": model, "u": u, "Shrinkage": Shrinkage, "learned_norm": learned_norm}
    found["guarded"], found["unguarded"] = adapted(seed=2, r=2), adapted(seed=3)
    found["optimizer"] = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def _directions(found, folder):
    adapted().save_pretrained(folder / "runs" / "caps" / "baseline" / "seed-0" / "adapter")


def _concept_ablation(found, folder):
    table = pd.DataFrame(
        {"condition": ["caft"], "directions": ["caps"], "site": ["resid_post.1"], "variance_ratio": [0.5]}
    )
    target = folder / "runs" / "concept_ablation" / "analyses" / "concept_ablation.csv"
    target.parent.mkdir(parents=True)
    table.to_csv(target, index=False)


def _inoculation(found, folder):
    rng = np.random.default_rng(0)
    found["pressures"] = inoculation_tables.pressures(rng, drop=1.0)
    found["random"] = inoculation_tables.random_controls(rng, found["pressures"])
    found["runs"] = inoculation_tables.runs(rng)


def _existing_models(found, folder):
    tiny.model().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "model"), config).save_pretrained(folder / "organism")


PAGES = {
    "docs/how-to/existing_models.md": _existing_models,
    "docs/tutorial.md": _tutorial,
    "docs/concepts/evaluation.md": _evaluation,
    "docs/concepts/guards.md": _guards,
    "docs/concepts/pressure.md": _pressure,
    "docs/how-to/report.md": _report,
    "docs/how-to/your_data.md": _your_data,
    "docs/how-to/routing.md": _routing,
    "docs/how-to/update_constraint.md": _update_constraint,
    "docs/how-to/directions.md": _directions,
    "docs/studies/inoculation.md": _inoculation,
    "docs/studies/concept_ablation.md": _concept_ablation,
}
