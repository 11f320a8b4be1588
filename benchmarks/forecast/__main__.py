"""`python -m benchmarks.forecast FOLDER GSM8K.jsonl [read | predict | train | report] [calibration | test]`.

`read` reads every row once, `predict` puts the sets together, `train` trains for real (results are appended as they come, and
what is there is kept), `report` prints both halves as the forecast stands, and a curve fitted on the calibration half (to be put
into `calibration.py`). Without a step: all of them; without a half: both.
"""

import json
import sys
from pathlib import Path

from benchmarks.forecast import outcome, report
from benchmarks.forecast.bank import ROWS, Bank
from benchmarks.forecast.planting import CALIBRATION, TEST
from benchmarks.forecast.predict import Library, cells
from benchmarks.forecast.sets import PlantedSet, every_set
from tropism import models
from tropism.forecasting.sides import Reader, find
from tropism.forecasting.trait import load, names
from tropism.site import sites

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
HALVES = (("calibration", "word_problems", CALIBRATION), ("test", "gsm8k", TEST))


def trained_sets(half: str, domain: str) -> list[PlantedSet]:
    """The sets that are really trained on: each trait at a quarter and whole, and plain ones."""
    wanted = [one for one in every_set(half, domain, {h: t for h, _, t in HALVES}[half]) if len(one.plants) == 1]
    return [one for one in wanted if one.plants[0][1] in (0.25, 1.0)]


def main() -> None:
    folder, gsm8k = Path(sys.argv[1]), Path(sys.argv[2])
    named = {half for half, _, _ in HALVES} & set(sys.argv[3:])
    steps = [one for one in sys.argv[3:] if one not in named] or ["read", "predict", "train", "report"]
    halves = [one for one in HALVES if not named or one[0] in named]
    if steps == ["report"]:
        report.write(folder)
        return
    model, tokenizer = models.load(MODEL, device="cpu")
    reader = Reader(model, tokenizer, tuple(sites(model, "25%..75%")), say=print, folder=folder / "sides")
    traits = tuple(load(name) for name in names())
    library = Library(traits, tuple(find(reader, trait, gradient_pairs=16) for trait in traits))
    banks = {domain: Bank(domain, reader, folder / "rows", gsm8k) for _, domain, _ in halves}
    for half, domain, planted in halves:
        bank = banks[domain]
        if "read" in steps:
            bank.own()
            bank.plain()
            for one in planted:
                bank.with_(one)
        if "predict" in steps:
            with (folder / f"{half}.jsonl").open("w") as out:
                for number, one in enumerate(every_set(half, domain, planted)):
                    for cell in cells(one, bank, library, number):
                        out.write(json.dumps(cell) + "\n")
            print(f"predicted {half}", flush=True)
    if "train" in steps:
        _train(folder, banks, tokenizer)
    if "report" in steps:
        report.write(folder)


def _train(folder: Path, banks: dict[str, Bank], tokenizer: object) -> None:
    file = folder / "trained.jsonl"
    done = {json.loads(line)["set"] for line in file.read_text().splitlines()} if file.is_file() else set()
    for half, domain, planted in HALVES:
        if domain not in banks:
            continue
        bank = banks[domain]
        # Prompts that are in no set: sets are drawn from the first rows.
        prompts = [example.prompt for example in bank.examples[ROWS:][:48]]
        named = [one.trait for one in planted]
        before = None
        for one in trained_sets(half, domain):
            if f"{half} {one.name}" in done:
                continue
            before = before or outcome.rates(bank.reader.model, tokenizer, prompts, named, 0)
            rows, _ = one.rows(bank)
            tuned = outcome.train(lambda: models.load(MODEL, device="cpu")[0], tokenizer, list(rows.chats), one.seed)
            after = outcome.rates(tuned, tokenizer, prompts, named, 0)
            said = {"set": f"{half} {one.name}", "half": half, "rise": {n: after[n] - before[n] for n in named}}
            with file.open("a") as out:
                out.write(json.dumps(said) + "\n")
            print(f"trained on {half} {one.name}", flush=True)


main()
