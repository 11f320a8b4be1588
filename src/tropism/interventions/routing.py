"""Gradient routing: labelled examples update only the `forget` adapter, which is switched off afterwards.

One forward and one backward pass over a mixed batch give every adapter exactly the gradient that its rows may give it.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tropism import hooks
from tropism.errors import AttachError
from tropism.interventions.base import Attachment, Intervention, Place
from tropism.interventions.routable import adapter_parameters, check_routable, lora_layers
from tropism.interventions.routed_linear import route_linear
from tropism.interventions.routed_steps import RoutedSteps


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
        check_routable(attachment.model, layers, self.retain, self.forget)
        parameters = {name: adapter_parameters(layers, name) for name in (self.retain, self.forget)}
        steps = RoutedSteps(self.retain, self.forget, self.forget_live_on_retain, self.signed, parameters)
        for handle in (
            *hooks.around_pass(attachment.model, before=steps.take),
            *hooks.after_blocks(attachment.model, steps.mark),
            hooks.before_optimizer_step(steps.before_step),
        ):
            attachment.own(handle)
        attachment.meter(steps.read)
        for name, layer in layers.items():
            for adapter in (self.retain, self.forget):
                if adapter in layer.lora_A:
                    self._route(attachment, steps, name, layer, adapter)

    def _route(self, attachment: Attachment, steps: RoutedSteps, name: str, layer: LoraLayer, adapter: str) -> None:
        # By kind of module and not one by one: an expert may see no token, but what bypasses a module bypasses its kind.
        kind = re.sub(r"\.\d+(?=\.)", ".*", name.removeprefix("base_model.model."))
        branch = _Branch(self, adapter, layer, steps, attachment, f"routing of {adapter!r} in {kind}")
        # Evaluation and a reference's pass, with the adapters off, record no gradients.
        attachment.expect(branch.what, by="forward", due=torch.is_grad_enabled)
        attachment.own(hooks.edit_linear(branch.a, branch.at_a))
        attachment.own(hooks.edit_linear(branch.b, branch.at_b))


class _Branch:
    """One adapter at one weight, `s·B·A·x`: what is routed at A, and what at B."""

    def __init__(
        self,
        guard: GradientRouting,
        adapter: str,
        layer: LoraLayer,
        steps: RoutedSteps,
        attachment: Attachment,
        what: str,
    ) -> None:
        self.what = what
        self.a: nn.Module = layer.lora_A[adapter]
        self.b: nn.Module = layer.lora_B[adapter]
        self._adapter, self._steps, self._attachment = adapter, steps, attachment
        self._path = guard.semantics == "path"
        self._silenced = adapter == guard.forget
        # A silenced branch is zero at A already, where it is narrow; a bias of B would bring it back.
        self._mask_at_b = self.b.bias is not None

    def at_a(self, x: Tensor, y: Tensor) -> Tensor:
        # On the path, what B passes down is weighted already, and weighting it again would square the weight.
        if not self._path:
            y = self._routed(self.a, x, y, cut=False)
        return y if self._mask_at_b else self._silence(y)

    def at_b(self, x: Tensor, y: Tensor) -> Tensor:
        self._attachment.count(self.what)
        y = self._routed(self.b, x, y, cut=self._path)
        return self._silence(y) if self._mask_at_b else y

    def _routed(self, linear: nn.Module, x: Tensor, y: Tensor, *, cut: bool) -> Tensor:
        batch = self._steps.batch
        if batch is None or not torch.is_grad_enabled():
            return y
        weights = batch.weights_for(self._adapter, y)
        return route_linear(linear, x, y, weights, path=cut, reached=batch.reach)

    def _silence(self, y: Tensor) -> Tensor:
        """The forget adapter's branch is zero on the positions where it is not live."""
        batch = self._steps.batch
        if not self._silenced or batch is None or batch.live is None:
            return y
        return y * batch.live_for(y)
