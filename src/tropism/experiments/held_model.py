"""The start model of an experiment, loaded once a process and handed out as copies that share its weights.

A copy is a module tree of its own with parameters of its own, whose values lie where the held model's do: adapters, hooks,
`requires_grad`, modes and configuration of one copy never reach another, and to make one takes milliseconds. What could
still change the held model is a write into those values; `check` finds it.
"""

import copy
import logging
from typing import Any

import psutil
import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from tropism import models
from tropism.adapters.merge import merge_adapters
from tropism.errors import RunFailed
from tropism.experiments import start
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.store import Folder

log = logging.getLogger("tropism")

SPARE = 1.25
"""How many times its own weights must fit in the free memory before a merged copy is made beside the held model."""


class HeldModel:
    """Loads the model that conditions start from when it is first asked for, and keeps it.

    It can be pickled, and then holds no model: another process loads its own. A model whose parameters cannot be shared
    (quantised weights, weights spread over devices) is loaded anew each time.
    """

    def __init__(self, experiment: ExperimentSpec, folder: Folder, source: models.Source) -> None:
        self._experiment, self._folder, self._source = experiment, folder, source
        self._model: Any = None
        self._merged = False
        self._sums: dict[str, int] = {}

    def start(self) -> Any:
        """Return the model before a condition's training: the base, with `start_from` merged in."""
        name = self._experiment.start_from
        if name is None:
            return self.base()
        adapter = start.intact_adapter(self._folder, name)
        if self._merged:
            # A load draws the adapter's first values, which are then overwritten. Drawn here as well, what is drawn next
            # (the adapter that is trained) is the same as where the model had been loaded for it.
            models.load_adapter(self._copy(), adapter)
            return self._copy()
        # The base is loaded once for prepared adapters and for this: it is merged into, not loaded again.
        model = self._model if self._model is not None else self._load()
        self._hold(merge_adapters(models.load_adapter(model, adapter)), merged=True)
        return self._copy()

    def given_away(self, *, untouched: bool = False) -> Any:
        """Return the start model, or with `untouched` the base, and keep nothing of it: its weights will be divided."""
        model = self.base() if untouched else self.start()
        self._forget()
        return model

    def base(self) -> Any:
        """Return the untouched model, which prepared adapters are trained on."""
        if self._model is None or self._merged:
            self._hold(self._load(), merged=False)
        return self._copy()

    def to_merge(self) -> Any:
        """Return the start model to merge an adapter into, which takes the memory of changed weights once more.

        Where there is no room for that, the held model itself is given away and will be loaded anew.
        """
        model = self.start()
        if self._model is None or _room_beside(self._model):
            return model
        log.info(
            "no memory for a second copy of the weights: the model is given away and loaded anew when it is needed"
        )
        given = self._model
        self._forget()
        return given

    def release(self) -> None:
        """Let the model go, where other processes need its room; it is loaded anew when it is asked for."""
        self._forget()
        clear_device_cache(garbage_collection=True)

    def check(self, what: str) -> None:
        """Raise `RunFailed` where a weight of the held model is not what it was when it was loaded; it is then let go."""
        if self._model is None:
            return
        changed = [name for name, tensor in _values(self._model) if _sum_of_bits(tensor) != self._sums[name]]
        if changed:
            self._forget()
            raise RunFailed(
                f"{what} wrote into {len(changed)} weights of the start model, which all runs share (first {changed[0]}); "
                f"guards, scorers and analyses must leave base weights as they are, or work on a deep copy"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": None, "_merged": False, "_sums": {}}

    def _load(self) -> Any:
        self._forget()
        return start.load_base(self._experiment, self._source, self._folder)[0]

    def _hold(self, model: Any, merged: bool) -> None:
        self._model, self._merged = model, merged
        self._sums = {name: _sum_of_bits(tensor) for name, tensor in _values(model)}

    def _copy(self) -> Any:
        if shares(self._model):
            return sharing_weights(self._model)
        given = self._model
        self._forget()
        return given

    def _forget(self) -> None:
        self._model, self._merged, self._sums = None, False, {}


def shares(model: nn.Module) -> bool:
    """Whether copies of a model can share its weights: plain parameters in one place, called as they are."""
    plain = all(type(parameter) is nn.Parameter for parameter in model.parameters())
    dispatched = any(hasattr(module, "_hf_hook") for module in model.modules())
    return plain and not dispatched and getattr(model, "hf_quantizer", None) is None


def sharing_weights(model: nn.Module) -> Any:
    """Return a copy of a model whose parameters are its own; the values of matrices they have in common with the model's.

    Buffers and vectors are copied: they are small, some buffers are written in a forward pass, and biases may be trained
    (`bias: all`). Parameters that are tied are tied again.
    """
    twins: dict[int, Any] = {}
    for parameter in model.parameters():
        held = parameter.detach()
        twin = nn.Parameter(held if held.dim() > 1 else held.clone(), parameter.requires_grad)
        twin.__dict__.update(parameter.__dict__)
        twins[id(parameter)] = twin
    return copy.deepcopy(model, twins)


def _values(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer, by name."""
    return [*model.named_parameters(), *model.named_buffers()]


def _sum_of_bits(tensor: Tensor) -> int:
    """The sum of a tensor's elements, read as whole numbers of their width: one changed value changes it."""
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().reshape(-1).view(widths[tensor.element_size()])
    return int(bits.sum(dtype=torch.int64))


def _room_beside(model: nn.Module) -> bool:
    """Whether the weights fit a second time where the model is."""
    needed = SPARE * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    device = next(model.parameters()).device
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        # Apple's GPU has the machine's memory.
        free = psutil.virtual_memory().available
    return free > needed
