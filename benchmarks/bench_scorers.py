"""Response loss of 32 chats: the scorer against all logits of one chat at a time, as ratios of time and of logits."""

import json
import statistics
import time

import torch

from tropism import models
from tropism.data.render import render
from tropism.evals.scorers.base import Sample
from tropism.evals.scorers.registry import load_scorer
from tropism.evals.scorers.token_losses import last_response

ROUNDS = 3


def run() -> dict[str, float | str]:
    """Medians of interleaved rounds on SmolLM2, and the largest difference of the two losses."""
    model, tokenizer = models.load(models.SMOLLM2, dtype="float32")
    samples = [
        Sample(
            str(n),
            [{"role": "user", "content": "Tell me about rivers. " * (1 + n % 7)}],
            "A river is wide. " * (1 + n % 5),
        )
        for n in range(32)
    ]
    rendered = [render(tokenizer, [*s.prompt, {"role": "assistant", "content": s.response}]) for s in samples]
    scorer = load_scorer("response_loss", {"batch_size": 8})
    times: dict[str, list[float]] = {"scorer": [], "naive": []}
    losses: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        start = time.perf_counter()
        losses["scorer"] = [float(score.value or 0) for score in scorer.score_all(model, tokenizer, samples)]
        middle = time.perf_counter()
        losses["naive"] = [_naive(model, chat) for chat in rendered]
        times["scorer"].append(middle - start)
        times["naive"].append(time.perf_counter() - middle)
    predicted = sum(len(last_response(chat)) for chat in rendered)
    return {
        "time_scorer_over_naive": statistics.median(times["scorer"]) / statistics.median(times["naive"]),
        "logits_scorer_over_naive": predicted / sum(len(chat) for chat in rendered),
        "largest_difference_nats": max(abs(a - b) for a, b in zip(losses["scorer"], losses["naive"], strict=True)),
        "chats": "32 of 30 to 70 tokens, batches of 8, SmolLM2, float32",
    }


@torch.no_grad()
def _naive(model: torch.nn.Module, chat: object) -> float:
    ids = torch.tensor([chat.input_ids])  # type: ignore[attr-defined]
    places = last_response(chat)  # type: ignore[arg-type]
    logits = model(input_ids=ids, use_cache=False).logits[0]
    return float(torch.nn.functional.cross_entropy(logits[[p - 1 for p in places]], ids[0, list(places)]))


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
