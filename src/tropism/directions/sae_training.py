"""Train a small BatchTopK SAE on a model's own activations at one site, with SAELens's trainer.

For models that have no published SAE, and for machines that cannot download one. Activations stream from the model
into a shuffled buffer and are never written to disk.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism.data.chats import Chat
from tropism.data.render import Rendered, render
from tropism.directions import provenance
from tropism.directions.find import check_sites
from tropism.directions.sae import hook_of_site
from tropism.directions.stream import WINDOW_BATCHES, activations, reading
from tropism.errors import DataError, DirectionsError
from tropism.models import computes_bfloat16
from tropism.optional import require
from tropism.randomness import seeded
from tropism.site import Site, width

CHATS_A_PASS = 16


@dataclass(frozen=True)
class SAEOptions:
    """How an SAE is trained: `expansion × d_model` latents, `k` of them active a token on average."""

    expansion: int = 4
    k: int = 32
    tokens: int = 300_000
    batch_tokens: int = 1024
    learning_rate: float = 2e-3
    buffer_tokens: int = 16_384
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "seed" and not value > 0:
                raise DirectionsError(f"SAEOptions.{name} must be above 0, found {value}")
        if self.tokens < 4 * self.batch_tokens:
            raise DirectionsError(
                f"SAEOptions.tokens must be at least four batches of batch_tokens={self.batch_tokens}, found "
                f"{self.tokens}"
            )


@dataclass(frozen=True)
class SAEReport:
    """What came out, on tokens held out from training: is this dictionary any good?"""

    site: str
    latents: int
    tokens: int
    explained_variance: float
    """`1 − Σ‖h − ĥ‖² / Σ‖h − mean(h)‖²` on held-out tokens."""
    dead_share: float
    """Share of latents that fired on no held-out token."""
    active_per_token: float
    final_loss: float


def train_sae(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat],
    site: Site,
    out: str | Path,
    *,
    options: SAEOptions | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> SAEReport:
    """Train an SAE at `site` on the tokens of `chats` and save it where `SAELatents(folder=...)` reads it.

    Every token counts but a chat's first, whose activation is hundreds of times larger in most models and carries
    nothing. A tenth of the chats is held out for the report. Chats are read again where they hold fewer tokens than
    asked for. `progress` is called with tokens seen and the loss after every step.

    Raises `DataError` where there are too few chats, `MissingExtra` without the extra `sae`.
    """
    chosen = SAEOptions() if options is None else options
    library = require("sae_lens", extra="sae", purpose="training an SAE")
    configs = require("sae_lens.config", extra="sae", purpose="training an SAE")
    check_sites(model, [site])
    if len(chats) < 10:
        raise DataError(f"train-sae needs at least 10 chats, one in ten to hold out, found {len(chats)}")
    rendered = [render(tokenizer, c, template_kwargs=template_kwargs, where=f"chat {i}") for i, c in enumerate(chats)]
    shuffled = [rendered[i] for i in torch.randperm(len(rendered), generator=_generator(chosen.seed)).tolist()]
    held_out, training = shuffled[: len(shuffled) // 10], shuffled[len(shuffled) // 10 :]
    d = width(model)
    # SAELens initialises from the global generator; the caller's is restored.
    with reading(model), seeded(chosen.seed, torch.device("cpu")):
        sae = library.BatchTopKTrainingSAE(
            library.BatchTopKTrainingSAEConfig(
                d_in=d,
                d_sae=chosen.expansion * d,
                k=chosen.k,
                normalize_activations="expected_average_only_in",
                dtype="float32",
                device="cpu",
                metadata=library.saes.sae.SAEMetadata(
                    hook_name=hook_of_site(site),
                    model_name=provenance.of_model(model)["name"],
                    tropism={"model": provenance.of_model(model), "options": asdict(chosen)},
                ),
            )
        )
        batches = _batches(model, training, site, chosen)
        first = next(batches)
        trainer = library.SAETrainer(
            configs.SAETrainerConfig(
                total_training_samples=chosen.tokens,
                train_batch_size_samples=chosen.batch_tokens,
                lr=chosen.learning_rate,
                lr_end=chosen.learning_rate / 10,
                lr_scheduler_name="constant",
                lr_warm_up_steps=20,
                lr_decay_steps=chosen.tokens // chosen.batch_tokens // 3,
                dead_feature_window=50,
            ),
            sae,
            itertools.chain([first], batches),
        )
        # Activations are scaled to a mean norm of √d, so that one learning rate suits every site; folded in at the end.
        trainer.activation_scaler.scaling_factor = float(d**0.5 / first.norm(dim=1).mean())
        loss = _fit(trainer, chosen.tokens, progress)
        sae.save_inference_model(str(out))
        evaluated = library.SAE.load_from_disk(str(out), device="cpu")
        return _evaluate(evaluated, _tokens(model, held_out, site), site, chosen.tokens, loss)


def _fit(trainer: Any, tokens: int, progress: Callable[[int, float], None] | None) -> float:
    """SAELens's own loop (`SAETrainer.fit`) step by step, with our progress in place of its bar on standard error."""
    loss = float("nan")
    while trainer.n_training_samples < tokens:
        trainer.maybe_reset_sparsity()
        loss = float(trainer.step(next(trainer.data_provider)).loss.detach())
        trainer.n_training_steps += 1
        if loss != loss:
            raise DirectionsError(
                f"the SAE's loss is not a number after {trainer.n_training_samples} tokens; lower the learning rate"
            )
        if progress is not None:
            progress(min(trainer.n_training_samples, tokens), loss)
    trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    trainer.set_final_sae_metadata()
    return loss


def _batches(
    model: nn.Module, training: Sequence[Rendered], site: Site, options: SAEOptions
) -> Iterator[Float[Tensor, "n d"]]:
    """Batches of token activations from a buffer that is shuffled and half emptied whenever it is full."""
    generator = _generator(options.seed + 1)
    held: list[Tensor] = []
    for start in itertools.cycle(range(0, len(training), CHATS_A_PASS * WINDOW_BATCHES)):
        held.append(_tokens(model, training[start : start + CHATS_A_PASS * WINDOW_BATCHES], site))
        if sum(len(part) for part in held) < options.buffer_tokens:
            continue
        buffer = torch.cat(held)
        buffer = buffer[torch.randperm(len(buffer), generator=generator)]
        ready = max(len(buffer) // 2 // options.batch_tokens, 1) * options.batch_tokens
        yield from torch.split(buffer[:ready], options.batch_tokens)
        held = [buffer[ready:]]


def _tokens(model: nn.Module, rendered: Sequence[Rendered], site: Site) -> Float[Tensor, "n d"]:
    """The site's activations, in bfloat16 autocast where the device computes in it: the stream itself stays as it is."""
    device = str(next(model.parameters()).device)
    with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=computes_bfloat16(device)):
        rows = activations(model, rendered, [site], "all", CHATS_A_PASS, unit="token")[site]
    first = torch.zeros(len(rows), dtype=torch.bool)
    first[torch.tensor([0, *itertools.accumulate(len(row) for row in rendered)][:-1])] = True
    return rows[~first]


@torch.no_grad()
def _evaluate(sae: Any, rows: Float[Tensor, "n d"], site: Site, tokens: int, loss: float) -> SAEReport:
    error, active = 0.0, 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for part in torch.split(rows, 4096):
        z = sae.encode(part)
        error += float((part - sae.decode(z)).double().square().sum())
        active += float((z > 0).sum())
        fired |= (z > 0).any(dim=0)
    spread = float((rows - rows.mean(dim=0)).double().square().sum())
    return SAEReport(
        str(site),
        int(sae.cfg.d_sae),
        tokens,
        1 - error / spread,
        float((~fired).float().mean()),
        active / len(rows),
        loss,
    )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
