"""The training loss in chunks of positions, against the loss on whole logits: SmolLM2, LoRA r = 8, 4 × 256 supervised tokens.

Those are 50 million logits, two chunks. A batch of one chunk takes the whole logits by itself. Steps of both sides alternate in
one process, and so does which comes first; the peak is that of a process of its own for each side.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

import tropism as tp
from benchmarks.ratios import spread
from tropism.training.loss import SUPERVISED, SupervisedLoss, label_logits, response_loss

ROWS, TOKENS, PAIRS = 4, 256, 5
SIDES = ("whole", "chunks")


class Trained:
    """SmolLM2 with an adapter, one batch, and a step on either side."""

    def __init__(self) -> None:
        base, _ = tp.models.load(tp.models.SMOLLM2, dtype="float32")
        torch.manual_seed(0)
        self.model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")).train()
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-5)
        self.ids = torch.randint(10, 40_000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
        self.ids = self.ids.to(self.model.device)

    def step(self, side: str) -> float:
        """Seconds of one step; what a chunked loss finds out of the model before the training is not in them."""
        chunks = SupervisedLoss(self.model)
        loss = chunks if side == "chunks" else response_loss
        with chunks.in_force() if side == "chunks" else label_logits(self.model):
            began = time.perf_counter()
            loss(self.model(input_ids=self.ids, **{SUPERVISED: self.ids}), self.ids).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.ids.is_cuda:
                torch.cuda.synchronize()
            return time.perf_counter() - began


def peak_gib(side: str) -> float:
    """Peak resident memory of a process that takes two steps on one side."""
    command = [sys.executable, "-m", "benchmarks.bench_loss", side]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return float(done.stdout.split()[-1])


def _own_peak_gib() -> float:
    # Not getrusage, whose peak a child inherits from the parent that started it.
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**20


def run() -> dict[str, object]:
    """The chunks' time over the whole logits', and the peak of each."""
    trained = Trained()
    for side in SIDES:
        trained.step(side)
    rounds = []
    for turn in range(PAIRS):
        order = SIDES if turn % 2 else SIDES[::-1]
        rounds.append({side: trained.step(side) for side in order})
    return {
        "what": f"SmolLM2-135M, LoRA r=8 all-linear, {ROWS}x{TOKENS} tokens, all supervised",
        "device": str(trained.model.device),
        "chunks_over_whole_time": spread(one["chunks"] / one["whole"] for one in rounds),
        "peak_gib": {side: round(peak_gib(side), 2) for side in SIDES},
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        alone = Trained()
        for _ in range(2):
            alone.step(sys.argv[1])
        print(_own_peak_gib())
    else:
        print(json.dumps(run(), indent=1))
