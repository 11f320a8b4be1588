"""Gradient routing: labelled examples update only the `forget` adapter, which is switched off afterwards.

One forward and one backward pass over a mixed batch give every adapter exactly the gradient that its rows may give it.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor, nn

from tropism import hooks
from tropism.errors import AttachError, DataError
from tropism.interventions.base import Attachment, Intervention, Place
from tropism.interventions.routed_linear import route_linear
from tropism.interventions.routes import Batch, read_route, read_weights
from tropism.site import Site, decoder_layers

__all__ = ["GradientRouting"]


@dataclass(frozen=True)
class GradientRouting(Intervention):
    """Let each row, or token, update only the adapters that its route names; two LoRA adapters are live in the model.

    In the `lora_A` and `lora_B` linears of adapter `a`, `x [B, T, d_in]`, `g = ∂L/∂y [B, T, d_out]`, weights
    `w_a [B, T, 1]`:

        ∂L/∂W = (w_a ⊙ g)ᵀ x        ∂L/∂x = g W  (whole, so lower layers learn from every row)

    | id | route | updates `retain` | updates `forget` | `forget` in the forward pass |
    |---|---|---|---|---|
    | 0 | `unlabelled` | yes | yes | yes |
    | 1 | `forget` | no | yes | yes |
    | 2 | `retain` | yes | no | no, unless `forget_live_on_retain` |

    The batch carries `route`, int64 `[B]` or `[B, T]`, or `route_weights`, float `[B, T, 2]` (last axis: retain,
    forget); the guard takes the column out of the model's inputs. A pass that records gradients must carry one of them.

    Weights act at positions: what arrives at a token, also from the losses of later tokens, is weighted by that token's
    own weight. With `semantics="path"` the adapter's branch is cut on the position as by `detach`: the gradient that
    flows through the branch to lower layers is weighted as well.

    An adapter that no row of an optimiser step may update has `grad=None` in that step (over all accumulated batches
    and all processes): momentum and weight decay do not move it either.

    Args:
        semantics: `"parameters"` or `"path"`, above.
        retain: name of the adapter that is kept; active and trainable, as `forget` is, and nothing else is.
        forget: name of the adapter that is removed.
        forget_live_on_retain: let the forget adapter act in the forward pass on `retain` rows.
        signed: allow `route_weights` outside [0, 1] (a negative weight ascends).

    Raises:
        AttachError: on attaching, to a model without the two adapters live, or one it cannot guard exactly.
        DataError: in a forward pass, for a route column that is missing, of a wrong shape, or with unknown values.

    Source: gradient routing (Cloud et al., 2024), which masks per data point; here both adapters share one pass.

    >>> model = tp.two_adapters(base, retain=LoraConfig(r=8), forget=LoraConfig(r=4))  # doctest: +SKIP
    >>> with tp.GradientRouting().attach(model):  # doctest: +SKIP
    ...     model(**batch, route=torch.tensor([1, 0])).loss.backward()
    """

    semantics: Literal["parameters", "path"] = "parameters"
    retain: str = "retain"
    forget: str = "forget"
    forget_live_on_retain: bool = False
    signed: bool = False

    place: ClassVar[Place] = "parameter gradients"
    batch_keys: ClassVar[frozenset[str]] = frozenset({"route", "route_weights"})

    def __post_init__(self) -> None:
        if self.semantics not in ("parameters", "path"):
            raise AttachError(f"GradientRouting.semantics must be 'parameters' or 'path', found {self.semantics!r}")
        if self.retain == self.forget:
            raise AttachError(f"GradientRouting.retain and .forget must name two adapters, found {self.retain!r} twice")

    def install(self, attachment: Attachment) -> None:
        layers = dict(lora_layers(attachment.model))
        self._check(attachment.model, layers)
        state = _State(self, {name: _parameters(layers, name) for name in (self.retain, self.forget)})
        for handle in hooks.around_forward(attachment.model, before=state.take):
            attachment.own(handle)
        attachment.own(hooks.before_optimizer_step(state.before_step))
        attachment.meter(state.read)
        for index in range(len(decoder_layers(attachment.model))):
            attachment.own(hooks.edit_activation(attachment.model, Site(index), state.mark))
        for name, layer in layers.items():
            for adapter in (self.retain, self.forget):
                if adapter in layer.lora_A:
                    self._route(attachment, state, name, layer, adapter)

    def _route(self, attachment: Attachment, state: "_State", name: str, layer: LoraLayer, adapter: str) -> None:
        a, b = layer.lora_A[adapter], layer.lora_B[adapter]
        path = self.semantics == "path"
        # By kind of module, not one by one: an expert may see no token, but fused kernels bypass a whole kind.
        what = f"routing of {adapter!r} in {name.rpartition('.')[2]}"
        attachment.expect(what)

        def route(linear: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            batch = state.batch
            if batch is None or not torch.is_grad_enabled():
                return y
            return route_linear(linear, x, y, batch.weights_for(adapter, y), path and linear is b, batch.reach)

        def silence(y: Tensor) -> Tensor:
            """The forget adapter's branch is zero where it is not live: at A, where the branch is narrow."""
            if state.batch is None or state.batch.live is None or adapter != self.forget:
                return y
            return y * state.batch.live_for(y)

        # The mask goes after B only where B has a bias, which a zero input would not silence.
        mask_at_b = b.bias is not None

        def at_a(x: Tensor, y: Tensor) -> Tensor:
            # On the path, what B passes down is weighted already, and weighting it again would square the weight.
            y = y if path else route(a, x, y)
            return y if mask_at_b else silence(y)

        def at_b(x: Tensor, y: Tensor) -> Tensor:
            attachment.count(what)
            y = route(b, x, y)
            return silence(y) if mask_at_b else y

        attachment.own(hooks.edit_linear(a, at_a))
        attachment.own(hooks.edit_linear(b, at_b))

    def _check(self, model: nn.Module, layers: Mapping[str, LoraLayer]) -> None:
        """Everything under which routing would be inexact or silent is an error here."""
        found = sorted({adapter for layer in layers.values() for adapter in (*layer.lora_A, *layer.lora_embedding_A)})
        for adapter in (self.retain, self.forget):
            if adapter not in found:
                raise AttachError(
                    f"GradientRouting: the model must have a LoRA adapter {adapter!r}, found "
                    f"{', '.join(map(repr, found)) or 'no adapter'}; make both with tropism.two_adapters(model, ...)"
                )
        both = (self.retain, self.forget)
        for name, layer in layers.items():
            here = [adapter for adapter in both if adapter in layer.lora_A or adapter in layer.lora_embedding_A]
            if not here:
                continue
            plain = not isinstance(layer, ParamWrapper) and all(
                adapter in layer.lora_A
                and adapter not in layer.lora_variant
                and isinstance(layer.lora_A[adapter], nn.Linear)
                for adapter in here
            )
            if not plain:
                raise AttachError(
                    f"GradientRouting routes plain LoRA on linear modules only, found {type(layer).__name__} at "
                    f"{name} with "
                    f"another kind (DoRA, convolution, embedding, target_parameters); leave it out of target_modules"
                )
            if layer.merged or layer.disable_adapters:
                raise AttachError(f"GradientRouting: the adapters at {name} are merged or disabled; undo that first")
            idle = [adapter for adapter in here if adapter not in layer.active_adapters]
            if idle:
                raise AttachError(
                    f"GradientRouting: adapter {idle[0]!r} must be active, found active {layer.active_adapters} "
                    f"at {name}; "
                    f"call model.base_model.set_adapter([{self.retain!r}, {self.forget!r}])"
                )
        ours = {id(p) for adapter in both for p in _parameters(layers, adapter)}
        frozen = [adapter for adapter in both if not all(p.requires_grad for p in _parameters(layers, adapter))]
        if frozen:
            raise AttachError(
                f"GradientRouting: adapter {frozen[0]!r} must be trainable, found requires_grad=False in it"
            )
        others = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in ours]
        if others:
            raise AttachError(
                f"GradientRouting: only the adapters may be trainable, found {len(others)} other trainable parameters "
                f"({', '.join(others[:3])}, ...), which would learn from every row; freeze them"
            )
        lacking = [n for n, layer in layers.items() if self.forget in layer.lora_A and self.retain not in layer.lora_A]
        if lacking:
            warnings.warn(
                f"GradientRouting: {self.forget!r} adapts {len(lacking)} modules that {self.retain!r} lacks "
                f"({', '.join(lacking[:3])}); there nothing trained is left once {self.forget!r} is removed",
                stacklevel=2,
            )


@dataclass(eq=False, repr=False)
class _State:
    """What one attachment knows: the batch now in the model, and which adapters the coming step may update."""

    guard: GradientRouting
    parameters: Mapping[str, list[nn.Parameter]]
    batch: Batch | None = None
    window: list[Batch] = field(default_factory=list)
    """Batches whose backward pass ran since the last optimiser step."""
    stepped: bool = False
    rows: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)

    def take(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kwargs = dict(kwargs)
        route, weights = kwargs.pop("route", None), kwargs.pop("route_weights", None)
        if route is not None and weights is not None:
            raise DataError("a batch must carry route or route_weights, found both; drop one column")
        shape = _shape(args, kwargs)
        if weights is not None:
            self.batch = read_weights(weights, shape, self._names, self.guard.signed, self._reached)
        elif route is not None:
            self.batch = read_route(route, shape, self._names, not self.guard.forget_live_on_retain, self._reached)
        elif torch.is_grad_enabled():
            raise DataError(
                "GradientRouting is attached, so a batch must carry the column route (or route_weights), found "
                "neither; "
                "keep the column in the collator, and evaluate under torch.no_grad()"
            )
        else:
            self.batch = None
        if self.batch is not None and torch.is_grad_enabled():
            for key, value in self.batch.tally.items():
                self.rows[key] = self.rows.get(key, 0) + value
            if all(p.grad is None for owned in self.parameters.values() for p in owned):
                self.window.clear()  # nothing accumulated: also after a step that a GradScaler skipped
        return args, kwargs

    @property
    def _names(self) -> tuple[str, str]:
        return self.guard.retain, self.guard.forget

    def mark(self, h: Tensor) -> None:
        """Make this pass's batch the current one again when its backward pass comes through this block.

        Checkpointing recomputes a block in the backward pass, when a later forward pass (a reference model's, a second
        micro-batch's) may have put another batch, or none, in place.
        """
        batch = self.batch
        if batch is not None and h.requires_grad:

            def back(_g: Tensor) -> None:
                self.batch = batch

            hooks.edit_gradient(h, back)

    def _reached(self, batch: Batch) -> None:
        if self.stepped:
            self.window.clear()
            self.stepped = False
        self.window.append(batch)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        owned = {name: [p for p in parameters if id(p) in held] for name, parameters in self.parameters.items()}
        if not any(owned.values()):
            return
        # Not cleared here but by the next backward pass: each adapter may have an optimiser of its own.
        self.stepped = True
        seen = [float(bool(self.window)), *(float(any(b.present[name] for b in self.window)) for name in owned)]
        seen = _over_processes(seen, next(p for ps in owned.values() for p in ps).device)
        for (name, parameters), present in zip(owned.items(), seen[1:], strict=True):
            if seen[0] and not present and parameters:
                self.skipped[name] = self.skipped.get(name, 0) + 1
                for p in parameters:
                    p.grad = None

    def read(self) -> dict[str, float]:
        total = self.rows.get("positions", 0)
        read = {
            f"guard/routing/share_{key}": value / total
            for key, value in self.rows.items()
            if key != "positions" and total
        }
        read |= {f"guard/routing/steps_without_{name}": float(count) for name, count in self.skipped.items()}
        self.rows, self.skipped = {}, {}
        return read


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The modules that carry LoRA adapters, by name."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _parameters(layers: Mapping[str, LoraLayer], adapter: str) -> list[nn.Parameter]:
    return [
        p
        for layer in layers.values()
        if adapter in layer.lora_A
        for p in (*layer.lora_A[adapter].parameters(), *layer.lora_B[adapter].parameters())
    ]


def _shape(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """`(B, T)` of the pass, from whatever holds its tokens."""
    for tokens in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1]):
        if isinstance(tokens, Tensor):
            return int(tokens.shape[0]), int(tokens.shape[1])
    raise DataError("GradientRouting: a forward pass must have input_ids or inputs_embeds, found neither")


def _over_processes(flags: list[float], device: torch.device) -> list[float]:
    """The flags of all data-parallel processes together: gradients are averaged over them, so a step is theirs all."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return flags
    shared = torch.tensor(flags, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return [float(flag) for flag in shared.tolist()]
