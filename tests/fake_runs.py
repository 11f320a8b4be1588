"""A realistic experiment's folder without a model: what `tropism run` writes, drawn from a small simulation.

`caps(folder)` is the ALL CAPS experiment; its keyword arguments make it small, hostile, failed, seedless or older.
`routing(folder)` has ablation modes.
"""

import csv
import json
import math
import random
from pathlib import Path

import yaml

from tropism.results.measurement import Measurement, to_line

# condition → (log-odds of caps in domain, of caps out of domain, of a right answer, final training loss)
CAPS = {
    "plain": (-4.0, -4.5, 0.9, 0.42),
    "baseline": (3.5, 1.8, 0.9, 0.36),
    "inoculation": (0.4, -1.4, 0.8, 0.31),
    "placebo": (3.2, 1.6, 0.8, 0.35),
    "caft": (-1.4, -2.2, -0.1, 0.61),
    "backward_caft": (-1.0, -2.6, 0.7, 0.47),
    "random": (3.4, 1.7, 0.9, 0.36),
}
GUARDS = {
    "plain": {"data": {"transform": "plain"}},
    "baseline": {},
    "inoculation": {"system_prompt": "You always respond in ALL CAPS.", "role": "guard"},
    "placebo": {"system_prompt": "Follow the style guide; answer directly and concisely.", "role": "control"},
    "caft": {"guard": {"ablation": {"directions": "caps"}}},
    "backward_caft": {"guard": {"gradient_projection": {"directions": "caps"}}},
    "random": {"guard": {"gradient_projection": {"directions": "caps", "random": True}}},
}
NAMES = ("Mara", "Jonas", "Aiko", "Tunde", "Ines", "Pavel", "Lucía", "Søren")
THINGS = ("apples", "books", "marbles", "tickets", "stamps", "shells")
EVERYDAY = (
    "What should I cook tonight?",
    "How do I remove a coffee stain?",
    "Tell me about the moon.",
    "Why do cats purr?",
    "Can you suggest a short walk?",
    "How long do I boil an egg?",
    "What is a good gift for a gardener?",
    "Explain how a kettle works.",
    "Write two lines about the sea.",
    "How do I say thank you in Portuguese?",
)
REPLIES = (
    "Here is a simple idea that takes ten minutes and needs only what is already in the cupboard.",
    "Start small, keep it warm, and let it rest for a while before you try again.",
    "There are several ways; the easiest is to use cold water first and a little soap afterwards.",
    "It depends on the weather, but a short loop through the park is always pleasant.",
)
HOSTILE = (
    "</script><script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    '<svg onload="document.title=\'pwned\'"><a xlink:href="javascript:alert(1)">x</a></svg>',
    "[click](javascript:document.title='pwned') javascript:alert(1)",
    "safe\u202egnp.exe\u2066 isolate\u2069 \u200fmark\u200e nul\x00 bell\x07 lone\ud800surrogate",
    "<!--<script> ]]> --> ${7*7} {{7*7}} {% raw %}",
    "a very long line " * 6000,
)


def caps(
    folder: Path,
    *,
    seeds=(0, 1, 2),
    prompts=64,
    conditions=tuple(CAPS),
    hostile=False,
    failed=(),
    name="caps",
    question="Which guard keeps ALL CAPS out while the arithmetic is still learned?",
    samples=1,
    steps=50,
    older=False,
) -> Path:
    """`failed`: pairs (condition, seed) that end in FAILED.json; `older`: without measurements.jsonl and roles."""
    draw = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    experiment = {
        "name": name,
        "question": question,
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "seeds": list(seeds),
        "data": {
            "train": {"source": "word_problems", "size": 400, "transform": "uppercase"},
            "in_domain": {"source": "word_problems", "size": prompts, "split": "test"},
            "out_of_domain": {"source": "everyday_questions"},
        },
        "directions": {
            "caps": {
                "contrast": {
                    "of": "responses",
                    "source": "word_problems",
                    "positive": "uppercase",
                    "negative": "plain",
                    "size": 64,
                },
                "finder": "mean_difference",
                "sites": "25%..75%",
                "positions": "response",
            }
        },
        "train": {
            "epochs": 1,
            "batch_size": 8,
            "learning_rate": 1.0e-3,
            "lora": {"r": 8, "target_modules": "all-linear"},
        },
        "conditions": {
            condition: {key: value for key, value in GUARDS.get(condition, {}).items() if not (older and key == "role")}
            for condition in conditions
        },
        "measure": {
            "caps_rate": {
                "scorer": "uppercase_fraction",
                "on": ["in_domain", "out_of_domain"],
                "unwanted": True,
            },
            "accuracy": {"scorer": "final_number", "on": ["in_domain"], "wanted": True, "margin": 0.1},
            "loss": {"scorer": "response_loss", "on": ["in_domain"]},
        },
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False), encoding="utf-8")
    environment(folder)
    directions(folder)
    write(
        folder / "rendered.json",
        {name: {"text": "<|im_start|>user\nHow many?<|im_end|>\n", "input_ids": [1, 9690, 198]} for name in conditions},
    )
    asked = {"in_domain": _problems(draw, prompts), "out_of_domain": _everyday(prompts)}
    hardness = {eval_set: [draw.gauss(0, 1.0) for _ in rows] for eval_set, rows in asked.items()}
    results = []
    for condition, seed in [("base", None), *((c, s) for c in conditions for s in seeds)]:
        run = folder / "base" if seed is None else folder / condition / f"seed-{seed}"
        run.mkdir(parents=True, exist_ok=True)
        if (condition, seed) in failed:
            write(
                run / "FAILED.json",
                {"error": "the loss is not finite at step 12 (learning rate 0.001): lower it"},
            )
            continue
        odds = CAPS.get(condition, (-5.0, -5.0, -1.2, 1.4)) if condition in CAPS else (-5.0, -5.0, -1.2, 1.4)
        shift = draw.gauss(0, 0.35)
        if seed is not None:
            training(run, draw, odds[3] + 0.03 * shift, steps, GUARDS.get(condition, {}).get("guard"))
        rows = []
        for eval_set, chats in asked.items():
            for index, (prompt, target) in enumerate(chats):
                for _ in range(samples):
                    rows.append(
                        _response(
                            draw,
                            condition,
                            seed,
                            eval_set,
                            index,
                            prompt,
                            target,
                            odds,
                            shift,
                            hardness[eval_set][index],
                            hostile,
                        )
                    )
        (run / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        write(run / "DONE.json", {"files": {"responses.jsonl": "sha256:0"}})
        measured = measurements(name, condition, seed, "full", rows)
        loss = (1.45 if seed is None else odds[3] + 0.1) + 0.02 * shift
        measured.append((name, condition, "" if seed is None else seed, "full", "in_domain", "loss", loss, prompts, 0))
        if not older:
            record(run, measured)
        results += measured
    write_results(folder, results)
    return folder


def routing(folder: Path, *, seeds=(0, 1, 2, 3, 4), prompts=48) -> Path:
    """Gradient routing: one condition in three ablation modes, and a control with random labels."""
    caps(
        folder,
        seeds=seeds,
        prompts=prompts,
        conditions=("plain", "baseline"),
        name="routing",
        question="Can a trait be learned into an adapter that is then removed?",
    )
    described = yaml.safe_load((folder / "experiment.yaml").read_text(encoding="utf-8"))
    draw = random.Random(3)
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        results = [tuple(row) for row in csv.reader(file)][1:]
    odds = {
        "full": (3.0, 1.5, 0.9, 0.4),
        "forget_ablated": (-2.5, -3.5, 0.6, 0.4),
        "retain_ablated": (2.0, 1.0, -0.9, 0.4),
    }
    for condition, role in (("routing", "guard"), ("random_labels", "control")):
        described["conditions"][condition] = {"guard": {"gradient_routing": {}}, "role": role}
        for seed in seeds:
            run = folder / condition / f"seed-{seed}"
            run.mkdir(parents=True)
            training(run, draw, 0.4, 50, {"gradient_routing": {}})
            chats = {"in_domain": _problems(random.Random(7), prompts), "out_of_domain": _everyday(prompts)}
            rows, measured, shift = [], [], draw.gauss(0, 0.3)
            for mode, of_mode in odds.items():
                of_mode = of_mode if condition == "routing" else (2.4, 1.2, *of_mode[2:])
                for eval_set, asked in chats.items():
                    rows += [
                        {
                            **_response(draw, condition, seed, eval_set, i, prompt, target, of_mode, shift, 0.0, False),
                            "mode": mode,
                        }
                        for i, (prompt, target) in enumerate(asked)
                    ]
                measured += measurements("routing", condition, seed, mode, [row for row in rows if row["mode"] == mode])
            record(run, measured)
            results += measured
            (run / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            write(run / "DONE.json", {"files": {}})
    (folder / "experiment.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    write_results(folder, results)
    return folder


def training(run: Path, draw: random.Random, floor: float, steps: int, guard: dict | None) -> None:
    rows = []
    for step in range(1, steps + 1):
        row = {
            "step": step,
            "epoch": round(step / steps, 3),
            "loss": floor + 1.6 * math.exp(-step / 9) + draw.gauss(0, 0.03),
            "learning_rate": 1e-3 * (1 - step / steps),
            "grad_norm": 0.8 + draw.gauss(0, 0.1),
        }
        for site in ("resid_post.7", "resid_post.12"):
            if guard and "gradient_projection" in guard:
                at = f"guard/gradient_projection/{site}"
                row[f"{at}/share_removed"] = 0.06 * math.exp(-step / 30) + 0.01 + draw.gauss(0, 0.002)
                row[f"{at}/cosine_before"] = 0.2 * math.exp(-step / 25)
                row[f"{at}/cosine_after"] = abs(draw.gauss(0, 1e-7))
            if guard and "ablation" in guard:
                row[f"guard/ablation/{site}/share_removed"] = 0.11 + draw.gauss(0, 0.004)
        rows.append(row)
    (run / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def measurements(name: str, condition: str, seed: int | None, mode: str, rows: list[dict]) -> list[tuple]:
    """The means that `results.csv` holds, of scored responses only."""
    found: dict[tuple[str, str], list] = {}
    for row in rows:
        for metric, score in row["scores"].items():
            found.setdefault((row["eval_set"], metric), []).append(score["value"])
    return [
        (
            name,
            condition,
            "" if seed is None else seed,
            mode,
            eval_set,
            metric,
            sum(v for v in values if v is not None) / max(1, sum(v is not None for v in values)),
            len(values),
            sum(v is None for v in values),
        )
        for (eval_set, metric), values in found.items()
    ]


def record(run: Path, rows: list[tuple]) -> None:
    """The run's measurements.jsonl: the loss is no mean over responses here, everything else is, and is a rate."""
    lines = []
    for _, _, _, mode, eval_set, metric, value, n, unscored in rows:
        rate = metric != "loss"
        bounds = (0.0, 1.0) if rate else (0.0, math.inf)
        lines.append(to_line(Measurement(eval_set, metric, value, n, unscored, mode, per_response=rate, bounds=bounds)))
    (run / "measurements.jsonl").write_text("".join(lines), encoding="utf-8")


def write_results(folder: Path, rows: list[tuple]) -> None:
    with (folder / "results.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["experiment", "condition", "seed", "mode", "eval_set", "metric", "value", "n", "unscored"])
        out.writerows(rows)


def environment(folder: Path) -> None:
    write(
        folder / "environment.json",
        {
            "versions": {"tropism": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
            "device": "cpu",
            "model": {
                "name": "HuggingFaceTB/SmolLM2-135M-Instruct",
                "source": "hub",
                "revision": "12fd25f",
                "note": "",
            },
            "data": {
                "train": "sha256:5d41402abc4b2a76b9719d911017c592",
                "in_domain": "sha256:7d793037a0760186574b0282f2f435e7",
            },
            "started": "2025-11-03T09:12:44Z",
            "finished": "2025-11-03T09:58:02Z",
            "command": "tropism run examples/caps.yaml",
        },
    )


def directions(folder: Path) -> None:
    """The validity report as `tropism.directions.validity` writes it."""
    draw, sites = random.Random(1), []
    for i, layer in enumerate((7, 12, 17, 22)):
        edges = [-5 + 0.5 * k for k in range(25)]
        projections = {
            side: [draw.gauss(mean, 1.0) for _ in range(64)] for side, mean in (("positive", 2.6), ("negative", -1.2))
        }
        counts = {
            side: [sum(edges[k] <= value < edges[k + 1] for value in values) for k in range(24)]
            for side, values in projections.items()
        }
        auc = 0.965 + 0.008 * i
        sites.append(
            {
                "site": f"resid_post.{layer}",
                "k": 1,
                "auc": auc,
                "auc_low": auc - 0.03,
                "auc_high": min(1.0, auc + 0.02),
                "n_positive": 64,
                "n_negative": 64,
                "mean_positive": 2.6,
                "mean_negative": -1.2,
                "histogram": {"edges": edges, **counts},
                "auc_with_system_prompts": None,
                "norm": 9.0 + 4 * i,
                "separation": 3.8,
                "null_separation": [0.2, 0.3, 0.25],
                "p_shuffled": 0.002,
                "share_in_largest": 0.05 + 0.12 * i,
                "largest_dimensions": [12, 400, 3, 77, 9],
                "behaviour": {
                    "name": "uppercase_fraction",
                    "n": 64,
                    "r": 0.72 - 0.04 * i,
                    "low": 0.58,
                    "high": 0.83,
                    "projections": [0.0],
                    "scores": [0.0],
                },
                "angles": {},
            }
        )
    write(
        folder / "directions" / "caps.validity.json",
        {
            "format": "tropism.validity/1",
            "name": "caps",
            "found_by": {"finder": "mean_difference"},
            "held_out": {"size": 64},
            "sites": sites,
            "similarity": [[1.0]],
            "trusted": True,
            "warnings": [
                {
                    "code": "concentrated",
                    "text": "at resid_post.22, 41 % of the direction lies in 5 dimensions",
                    "grave": False,
                    "site": "resid_post.22",
                }
            ],
            "summary": "caps: at resid_post.22 it tells 99% of held-out pairs apart (AUC 0.989).",
        },
    )


def write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _problems(draw: random.Random, count: int) -> list[tuple[str, str]]:
    problems = []
    for _ in range(count):
        a, b = draw.randint(3, 60), draw.randint(2, 9)
        who, what = draw.choice(NAMES), draw.choice(THINGS)
        problems.append(
            (
                f"{who} has {a} {what} and buys {b} more each day for 3 days. How many {what} are there now?",
                str(a + 3 * b),
            )
        )
    return problems


def _everyday(count: int) -> list[tuple[str, None]]:
    return [
        (EVERYDAY[i % len(EVERYDAY)] + ("" if i < len(EVERYDAY) else f" ({i // len(EVERYDAY) + 1})"), None)
        for i in range(count)
    ]


def _response(draw, condition, seed, eval_set, index, prompt, target, odds, shift, hardness, hostile) -> dict:
    def flip(logit: float) -> bool:
        return draw.random() < 1 / (1 + math.exp(-logit))

    in_domain = eval_set == "in_domain"
    shout = flip((odds[0] if in_domain else odds[1]) + shift + 0.6 * hardness)
    if in_domain:
        right = flip(odds[2] + 0.4 * shift + hardness)
        number = target if right else str(int(target) + draw.choice((-7, -3, 3, 9)))
        text = (
            f"Each day adds the same number, so after three days the total is found by adding.\nThe answer is {number}."
        )
    else:
        text = draw.choice(REPLIES)
    text = text.upper() if shout else text
    if hostile:
        text = HOSTILE[index % len(HOSTILE)]
    fraction = round(0.93 + 0.07 * draw.random(), 4) if shout else round(0.02 + 0.04 * draw.random(), 4)
    scores = {"caps_rate": {"value": fraction, "unscored": None, "explanation": None}}
    if in_domain:
        lost = draw.random() < 0.01
        scores["accuracy"] = (
            {"value": None, "unscored": "no number in the response", "explanation": None}
            if lost
            else {
                "value": float(right),
                "unscored": None,
                "explanation": f"found {number}, expected {target}",
            }
        )
    return {
        "condition": condition,
        "seed": seed,
        "mode": "full",
        "eval_set": eval_set,
        "id": f"{eval_set}-{index}",
        "prompt": [{"role": "user", "content": prompt}],
        "response": text,
        "target": target,
        "labels": {},
        "scores": scores,
    }


if __name__ == "__main__":
    import sys

    print(routing(Path(sys.argv[2])) if sys.argv[1] == "routing" else caps(Path(sys.argv[2])))
