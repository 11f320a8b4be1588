"""`tropism validate` on many chats: the first time, which renders them, and the second, which finds them kept; and memory.

Seven conditions as in examples/caps.yaml: four distinct sets (two transforms, two prompts), and three guards on one of them.
Each reading is a process of its own, so that its largest memory is its own. Numbers depend on the machine; what is to hold
anywhere is that the second time is a small share of the first, and that memory does not grow with the rows.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.examples import examples

CHATS = 20_000
MANY = (10_000, 100_000)
EXPERIMENT = """
name: many
question: How long does it take to check many chats?
model: HuggingFaceTB/SmolLM2-135M-Instruct
seeds: [0]
data:
  train:    {{source: {source}, transform: uppercase}}
  held_out: {{source: word_problems, size: 64, split: test}}
train: {{max_steps: 4}}
conditions:
{conditions}
measure:
  caps: {{scorer: uppercase_fraction, on: [held_out], unwanted: true}}
"""
SEVEN = """
  plain:         {data: {transform: plain}}
  baseline:      {}
  inoculation:   {system_prompt: You always answer in capital letters.}
  placebo:       {system_prompt: You are a helpful assistant.}
  low_rate:      {train: {learning_rate: 1.0e-5}}
  middle_rate:   {train: {learning_rate: 5.0e-5}}
  high_rate:     {train: {learning_rate: 5.0e-4}}
"""
ONE = "  baseline: {}"


def write(folder: Path, chats: int, conditions: str) -> Path:
    """Write an experiment and its chats: the examples round and round, each with a number of its own."""
    _, held = examples(2000)
    with (folder / "chats.jsonl").open("w", encoding="utf-8") as file:
        for index in range(chats):
            question, answer = held[index % len(held)].chat
            asked = {**question, "content": f"{question['content']} ({index})"}
            file.write(json.dumps({"messages": [asked, answer]}) + "\n")
    path = folder / "many.yaml"
    path.write_text(EXPERIMENT.format(source=folder / "chats.jsonl", conditions=conditions), encoding="utf-8")
    return path


def reading(file: Path, kept: Path) -> dict[str, float]:
    """Validate in a process of its own: seconds, those of all its threads, both without imports, and its largest memory."""
    environment = {**os.environ, "TROPISM_RENDERED": str(kept)}
    environment.pop("TOKENIZERS_PARALLELISM", None)
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_validate", str(file)],
        env=environment, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def validate(file: Path) -> dict[str, float]:
    """Validate here."""
    from tropism.experiments import estimate
    from tropism.experiments.file.experiment import Experiment

    began, before = time.perf_counter(), time.process_time()
    estimate.estimate(Experiment.load(file))
    seconds, cpu = time.perf_counter() - began, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(seconds, 2), "cpu_s": round(cpu, 2), "peak_mib": round(peak)}


def run() -> dict[str, float]:
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = write(folder, CHATS, SEVEN)
        first, second = reading(file, folder / "kept"), reading(file, folder / "kept")
        figures = {
            "chats": CHATS,
            "conditions": 7,
            "first_s": first["seconds"],
            "first_cpu_s": first["cpu_s"],
            "second_s": second["seconds"],
            "second_cpu_s": second["cpu_s"],
            "second_share_of_first": round(second["seconds"] / first["seconds"], 3),
        }
        for rows in MANY:
            file = write(folder, rows, ONE)
            found = reading(file, folder / f"kept-{rows}")
            figures |= {f"peak_mib_{rows}_rows": found["peak_mib"], f"seconds_{rows}_rows": found["seconds"]}
    fewer, more = MANY
    grown = figures[f"peak_mib_{more}_rows"] - figures[f"peak_mib_{fewer}_rows"]
    return {**figures, "bytes_a_further_row": round(grown * 2**20 / (more - fewer))}


if __name__ == "__main__":
    print(json.dumps(validate(Path(sys.argv[1])) if len(sys.argv) > 1 else run(), indent=None))
