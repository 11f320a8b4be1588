"""Tensors as on Apple's MPS, which has no float64: they refuse it until they are on the CPU."""

import torch


class WithoutFloat64(torch.Tensor):
    """What is computed from such a tensor is one too; `.cpu()` and `.to("cpu")` give a plain tensor."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = function is torch.Tensor.cpu or (
            function is torch.Tensor.to and (args[1:] == ("cpu",) or args[1:] == (torch.device("cpu"),)) and not kwargs
        )
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
        if leaves:
            return result.as_subclass(torch.Tensor)
        if isinstance(result, torch.Tensor):
            if result.dtype == torch.float64:
                raise TypeError(
                    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"
                )
            return result.as_subclass(cls)
        return result


def on_mps(tensor: torch.Tensor) -> WithoutFloat64:
    """The tensor, as it would be on such a device."""
    return tensor.detach().as_subclass(WithoutFloat64)
