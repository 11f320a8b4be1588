"""What works on which architecture: every causal LM of transformers, tiny, against replaced forward passes.

`python tests/sweep.py` writes docs/architectures.md; `python tests/sweep.py llama mamba` prints the rows of some.
"""

import copy
import inspect
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import tiny_causal
import tropism as tp
from hand_edits import edited_blocks
from tropism.adapters.targets import resolve_targets
from tropism.errors import TropismError

COLUMNS = ("resid_post", "attn_out", "mlp_out", "routing", "constraint")
TOLERANCE = 2e-4
SECONDS = 60
PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"

RIGHT, REFUSED, WRONG, TRACEBACK = "right", "refused", "wrong", "traceback"


@dataclass(frozen=True)
class Cell:
    """What came of one capability on one architecture."""

    state: str
    said: str = ""


class Partly(Exception):
    """Right in some blocks, refused in others."""


class Wrong(Exception):
    """Tropism went through and the oracle disagrees."""


def row(name: str) -> dict[str, Cell]:
    """Each column's cell of one architecture; raises what building or running the model raises."""
    model = tiny_causal.build(name)
    with torch.no_grad():
        logits = model(**batch(model)).logits
    if not torch.isfinite(logits).all():
        raise ValueError("the tiny model's logits are not finite")
    checks: dict[str, Callable[[nn.Module], None]] = {
        "resid_post": resid_post,
        "attn_out": lambda model: added(model, "attn_out"),
        "mlp_out": lambda model: added(model, "mlp_out"),
        "routing": routing,
        "constraint": constraint,
    }
    return {column: cell(checks[column], model) for column in COLUMNS}


def cell(check: Callable[[nn.Module], None], model: nn.Module) -> Cell:
    """Run one check on a copy of the model."""
    with warnings.catch_warnings(action="ignore"):
        try:
            check(copy.deepcopy(model))
        except Wrong as error:
            return Cell(WRONG, str(error))
        except Partly as error:
            return Cell(RIGHT, " ".join(str(error).split()))
        except TropismError as error:
            return Cell(REFUSED, " ".join(str(error).split()))
        except TimeoutError:
            raise
        except Exception as error:  # noqa: BLE001 (the page shows whatever came)
            return Cell(TRACEBACK, f"{type(error).__name__}: {error}".replace("\n", " ")[:300])
    return Cell(RIGHT)


def batch(model: nn.Module, rows: int = 2, tokens: int = 6) -> dict[str, Any]:
    """Ids of two rows, without a cache: tiny hybrids may have no layer that could say how long it is."""
    ids = torch.randint(5, 100, (rows, tokens), generator=torch.Generator().manual_seed(1))
    taken = inspect.signature(tp.site.base_model(model).forward).parameters
    return {"input_ids": ids, **({"use_cache": False} if {"use_cache", "kwargs"} & set(taken) else {})}


def close(found: Tensor, wanted: Tensor, what: str) -> None:
    """Raise `Wrong` where two tensors differ by more than rounding, relative to the larger."""
    if found.shape != wanted.shape:
        raise Wrong(f"{what}: shape {list(found.shape)}, the oracle's {list(wanted.shape)}")
    apart = float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))
    if not apart < TOLERANCE:
        raise Wrong(f"{what}: {apart:.1e} from the oracle")


# --- the columns ---


def resid_post(model: nn.Module) -> None:
    """Steering and ablation at `resid_post` equal blocks that return the edited stream; both rows' tokens are told."""
    inputs = batch(model)
    layers = tp.decoder_layers(model)
    width = tp.site.width(model)
    v = torch.randn(width, generator=torch.Generator().manual_seed(2))
    unit = v / v.norm()
    last = len(layers) - 1
    d = tp.Directions({tp.Site(layer): v for layer in {0, last}})
    plain = model(**inputs).logits.detach()
    edits: dict[str, tuple[tp.Intervention, Callable[[Tensor], Tensor]]] = {
        "steering": (tp.Steering(d, coefficient=0.5, evaluation=True), lambda h: h + 0.5 * v),
        "ablation": (tp.Ablation(d, evaluation=True), lambda h: h - (h @ unit)[..., None] * unit),
    }
    for name, (guard, edit) in edits.items():
        with guard.attach(model):
            found = _with_gradient(model, inputs)
        with edited_blocks(model, {site.layer: edit for site in d.sites}):
            wanted = _with_gradient(model, inputs)
        close(found[0], wanted[0], f"{name}, logits")
        close(found[1], wanted[1], f"{name}, gradient")
        if torch.allclose(found[0].detach(), plain, atol=1e-7):
            raise Wrong(f"{name} changes nothing")
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 4:], mask[1, 2:] = True, True
    kept: list[Tensor] = []
    with edited_blocks(model, {last: lambda h: (kept.append(h.detach().clone()), h)[1]}), torch.no_grad():
        model(**inputs)
    with tp.capture(model, [tp.Site(last)], positions="response") as acts, torch.no_grad():
        model(**inputs, response_mask=mask)
    if kept[0].shape != (2, 6, width):
        raise Wrong(f"blocks return {list(kept[0].shape)}, not [B, T, d]")
    close(acts[tp.Site(last)], kept[0][mask].float(), "what is captured at the response")


def _with_gradient(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    logits = model(**inputs).logits
    logits.float().square().mean().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient is not None
    return logits, gradient.clone()


def added(model: nn.Module, stream: tp.site.Stream) -> None:
    """What is read at the site is what the block adds beside its other branch, and an edit of it lands in the stream."""
    inputs = batch(model)
    blocks = range(len(tp.decoder_layers(model)))
    refusals: list[TropismError] = []
    for layer in blocks:
        streams = [tp.Site(layer, s) for s in ("resid_pre", stream, "resid_post")]
        other = tp.Site(layer, "mlp_out" if stream == "attn_out" else "attn_out")
        try:
            _add_up(model, inputs, streams, other)
            handle = tp.hooks.edit_activation(model, streams[1], lambda h: 1.5 * h + 0.1)
        except TropismError as error:
            refusals.append(error)
            continue
        _add_up(model, inputs, streams, other)
        handle.remove()
    if len(refusals) == len(blocks):
        raise refusals[0]
    if refusals:
        raise Partly(f"in {len(blocks) - len(refusals)} of {len(blocks)} blocks; else: {refusals[0]}")


def _add_up(model: nn.Module, inputs: dict[str, Any], streams: list[tp.Site], other: tp.Site) -> None:
    wanted = [*streams]
    try:
        tp.hooks.module_at(model, other)
        wanted.append(other)
    except TropismError:  # a block of one branch
        pass
    with tp.capture(model, wanted) as acts, torch.no_grad():
        model(**inputs)
    pre, post = acts[streams[0]], acts[streams[2]]
    parts = [acts[site].reshape(pre.shape) for site in wanted if site not in (streams[0], streams[2])]
    close(sum(parts, torch.zeros_like(pre)), post - pre, f"the sum at {streams[1]}")


def routing(model: nn.Module) -> None:
    """With two adapters on all linear layers, each adapter's gradient is that of its own rows, each run alone."""
    lora = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.0)
    both = tp.two_adapters(model, retain=lora, forget=lora)
    _far_from_zero(both)
    both.eval()
    routes = torch.tensor([1, 0])  # row 0 updates forget alone, row 1 both
    inputs = batch(both)
    with tp.GradientRouting().attach(both):
        found = _adapter_gradients(both, {**inputs, "route": routes}, rows=[0, 1])
    alone = [
        _adapter_gradients(both, {**inputs, "input_ids": inputs["input_ids"][r : r + 1]}, rows=[0]) for r in (0, 1)
    ]
    for name, gradient in found.items():
        wanted = alone[1][name] if ".retain." in name else alone[0][name] + alone[1][name]
        scale = max(float(wanted.norm()), 1e-4 * max(float(g.norm()) for g in found.values()))
        if float((gradient - wanted).norm()) / max(scale, 1e-12) > 1e-2:
            raise Wrong(f"{name}: {float((gradient - wanted).norm()) / scale:.1e} from the rows run alone")


def _adapter_gradients(model: nn.Module, inputs: dict[str, Any], rows: list[int]) -> dict[str, Tensor]:
    model.zero_grad()
    logits = model(**inputs).logits
    sum(logits[row].float().square().mean() for row in rows).backward()  # type: ignore[union-attr]
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def constraint(model: nn.Module) -> None:
    """After steps of AdamW under the constraint, no weight has moved along its direction, measured on dense weights."""
    lora = LoraConfig(r=2, target_modules=resolve_targets(model, "all-linear"), lora_dropout=0.0)
    direction_model = get_peft_model(copy.deepcopy(model), copy.deepcopy(lora))
    _far_from_zero(direction_model, seed=3)
    u = tp.parameter_directions(direction_model)
    adapted = get_peft_model(model, lora)
    _far_from_zero(adapted)
    inputs = batch(adapted)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    before = _dense(adapted)
    with tp.UpdateConstraint(u).attach(adapted, optimizer=optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            adapted(**inputs).logits.float().square().mean().backward()
            optimizer.step()
    after, along = _dense(adapted), _dense(direction_model)
    moved = 0.0
    for name, start in before.items():
        moved += float((after[name] - start).norm())
        for change, direction in zip(_weights(after[name] - start), _weights(along[name]), strict=True):
            leak = abs(float((change * direction).sum())) / max(float(change.norm() * direction.norm()), 1e-12)
            if float(change.norm()) > 1e-6 and leak > 1e-3:
                raise Wrong(f"{name} moved along its direction: cosine {leak:.1e}")
    if not moved:
        raise Wrong("nothing was trained")


def _weights(change: Tensor) -> list[Tensor]:
    return list(change) if change.dim() == 3 else [change]


def _dense(model: nn.Module) -> dict[str, Tensor]:
    """What PEFT's own `get_delta_weight` says is added to each weight; of fused experts `[E, ...]`."""
    return {
        name: layer.get_delta_weight("default").detach().double()
        for name, layer in model.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }


def _far_from_zero(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))


# --- the page ---


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """`TimeoutError` after so many seconds of computing; waiting for a busy machine counts for nothing."""

    def ring(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def swept(names: list[str]) -> dict[str, dict[str, Cell] | str]:
    """Each architecture's row, or why it cannot be built here."""
    rows: dict[str, dict[str, Cell] | str] = {}
    for name in names:
        began = time.monotonic()
        try:
            with limited(SECONDS), warnings.catch_warnings(action="ignore"):
                rows[name] = row(name)
        except TimeoutError:
            rows[name] = f"more than {SECONDS} s of computing"
        except Exception as error:  # noqa: BLE001 (the page shows whatever came)
            rows[name] = f"{type(error).__name__}: {error}".replace("\n", " ")[:160].strip()
        found = rows[name]
        said = found if isinstance(found, str) else {c: f"{v.state} {v.said}".strip() for c, v in found.items()}
        print(f"{name} {time.monotonic() - began:.1f}s {said}", flush=True)
    return rows


def main(arguments: list[str]) -> int:
    transformers.logging.set_verbosity_error()
    rows = swept(arguments or tiny_causal.names())
    if not arguments:
        PAGE.write_text(page(rows), encoding="utf-8")
    bad = [name for name, found in rows.items() if not isinstance(found, str) and _bad(found)]
    if bad:
        print(f"wrong or with a traceback: {', '.join(bad)}")
    return 1 if bad else 0


def _bad(found: dict[str, Cell]) -> bool:
    return any(one.state in (WRONG, TRACEBACK) for one in found.values())


def page(rows: dict[str, dict[str, Cell] | str]) -> str:
    """The generated page: the table, and each reason once."""
    built = {name: found for name, found in rows.items() if not isinstance(found, str)}
    unbuilt = {name: found for name, found in rows.items() if isinstance(found, str)}
    reasons: dict[str, str] = {}
    lines = []
    for name, found in built.items():
        cells = []
        for column in COLUMNS:
            one = found[column]
            why = generic(name, one.said)
            mark = f"[{reasons.setdefault(why, str(len(reasons) + 1))}]" if one.said else ""
            cells.append(f"{one.state} {mark}".strip())
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    counts = {
        column: {state: sum(found[column].state == state for found in built.values()) for state in STATES}
        for column in COLUMNS
    }
    total = [f"| {column} | {' | '.join(str(counts[column][state]) for state in STATES)} |" for column in COLUMNS]
    parts = [
        HEAD.format(
            transformers=transformers.__version__,
            peft=peft.__version__,
            torch=torch.__version__.split("+")[0],
            built=len(built),
            names=len(rows),
            seconds=SECONDS,
        ),
        f"|  | {' | '.join(STATES)} |\n|---|{'---|' * len(STATES)}\n" + "\n".join(total),
        f"## Each architecture\n\n| architecture | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}\n"
        + "\n".join(lines),
        "## Reasons\n\n" + "\n".join(f"{number}. {why}" for why, number in reasons.items()),
        "## Not built here\n\n" + "\n".join(f"- `{name}`: {why}" for name, why in unbuilt.items()),
    ]
    return "\n\n".join(parts) + "\n"


STATES = (RIGHT, REFUSED, WRONG, TRACEBACK)

HEAD = """# Architectures

Generated by `make sweep` (`tests/sweep.py`), not written: transformers {transformers}, PEFT {peft}, torch {torch}, on a CPU.
Of the {names} model types that transformers maps to a causal LM, {built} were built from a small configuration with random
weights, and each cell was tried against an oracle:

- **resid_post**: steering and ablation at the first and last block, logits and gradient, against blocks whose forward pass is
  replaced; and what is captured at the response.
- **attn_out**, **mlp_out**: what is read there, plus the other branch, is what the block adds to the stream; also once it is
  edited. Refused means that the block adds something else.
- **routing**: two adapters on `all-linear`; each adapter's gradient is that of its rows, each run alone.
- **constraint**: AdamW under a constraint on `all-linear`; the dense change of each weight has no component along its
  direction.

*right*: equal to the oracle. *refused*: an error of one sentence before anything was trained, below."""


def generic(name: str, said: str) -> str:
    """A reason without the figures and names that differ between architectures."""
    said = re.sub(r"\b[A-Z]\w*(?:Layer|Block|LM|Model|Generation|GPT)\w*\b", "the model", said)
    said = re.sub(r"relative residual of [0-9.e+-]+|relative residual of inf", "relative residual of …", said)
    said = re.sub(r"(attn_out|mlp_out|resid_post|resid_pre)\.\d+", r"\1", said)
    said = re.sub(r"\(the nearest, [^)]*allowed", "(the nearest leave a residual above the allowed", said)
    said = re.sub(r"\(it has: [^)]*\)", "(…)", said)
    said = re.sub(r" at [\w.*, ]+(?: and \d+ more)?, whose", " at …, whose", said)
    said = re.sub(r"which rows of a batch .*? see \(.*?\),", "which rows of a batch some modules see,", said)
    said = re.sub(r"target_modules=\[[^]]*\]", "target_modules=[…]", said)
    said = re.sub(r"what (?:the )?\w+ adds to the stream", "what the block adds to the stream", said)
    said = re.sub(r"\(candidates: .*?\);", "(…);", said)
    said = re.sub(r"not in force: .*? did not fire", "not in force: some adapted modules did not fire", said)
    return said.replace(f"'{name}'", "…")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
