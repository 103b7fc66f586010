"""A GPU for machines without one: tensors on "cuda" have shape, dtype and device, but no values.

    with fake_cuda() as gpu:
        model = gpu.move(build_model(cfg))
        losses = model(batch)
        sum(losses.values()).backward()
    assert gpu.waits == []

Tensors on the CPU stay real. What fails on a GPU fails here: two devices in one operation. What would make the host
wait for the device fails, too: `.item()`, `.tolist()`, `nonzero`, a boolean index. A copy to the host is allowed and
recorded in `waits`, and gives ones; a copy to the device that is not `non_blocking` is recorded, too. Both wait on a
GPU, as `torch.cuda.set_sync_debug_mode` shows there.

Autocast works without gradients only; with them, operations stay in float32. `Tensor.is_cuda` is not set: use `device`.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests import ROOT

COPIES = {  # an index on the CPU is copied, too
    getattr(torch.ops.aten, name)
    for name in ("_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_")
}
CUDA, META = torch.device("cuda", 0), torch.device("meta")
Model = TypeVar("Model", bound=nn.Module)


class FakeCuda(TorchDispatchMode):
    """Run operations on real tensors as they are, and those on the device "cuda" without values.

    Attributes:
        waits: where the host waited, each as "direction: file:line, line of code".
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def move(self, model: Model) -> Model:
        """Replace the parameters and buffers of a model by ones on "cuda", and return it."""
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    moved = torch.empty_like(parameter.detach(), device=CUDA)
                    module._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty_like(buffer, device=CUDA)
        return model

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return self._device_seen_by_cpp(args[0])
        if kwargs.get("device") == META:
            kwargs["device"] = CUDA
        leaves = tree_leaves((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        is_on_device = any(isinstance(x, FakeTensor) for x in tensors)
        if not is_on_device and not any(isinstance(x, torch.device) and x.type == "cuda" for x in leaves):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        kwargs = {key: None if key == "generator" else value for key, value in kwargs.items()}
        if func is torch.ops.aten.split.Tensor and args[0].shape[args[2] if len(args) > 2 else 0] == 0:
            return [torch.ops.aten.alias(args[0])]  # the fake one fails on nothing
        result = func(*args, **kwargs)
        if isinstance(result, FakeTensor) and result.device.type == "cpu":
            self._record("to the host")
            with unset_fake_temporarily():
                return torch.ones(result.shape, dtype=result.dtype)
        is_blocking = not kwargs.get("non_blocking") and not any(x is True for x in args[2:3])  # of _to_copy, copy_
        if func.overloadpacket in COPIES and is_blocking and not all(isinstance(x, FakeTensor) for x in tensors):
            self._record("to the device")
        return result

    @staticmethod
    def _device_seen_by_cpp(x: Tensor) -> torch.device:
        """Return "meta" to autograd, which would ask for streams of a GPU, and else the device; Python does not ask."""
        is_autograd = torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1
        return META if is_autograd and isinstance(x, FakeTensor) else x.device

    def _record(self, direction: str) -> None:
        ours = [frame for frame in traceback.extract_stack() if str(ROOT / "dformer") in frame.filename]
        frame = (ours or traceback.extract_stack()[:-2])[-1]
        self.waits.append(f"{direction}: {Path(frame.filename).name}:{frame.lineno}, {frame.line}")


class _WithoutValues(FakeTensorMode):
    avoid_device_init = True  # also where PyTorch is told that there is a GPU


class HostGenerator(torch.Generator):
    """Make generators; those for "cuda" are on the CPU, but say that they are not: others need a driver."""

    def __new__(cls, device: torch.device | str = "cpu") -> torch.Generator:
        return super().__new__(cls) if torch.device(device).type == "cuda" else _CPUGenerator(device)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:
        return CUDA


_CPUGenerator = torch.Generator


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Give the device "cuda" within this context, whether or not there is a GPU."""
    without_values = _WithoutValues(allow_non_fake_inputs=True)
    with (
        mock.patch.object(torch, "Generator", HostGenerator),
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.object(torch.cuda, "is_bf16_supported", lambda: True),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: False),
        torch.autograd.set_multithreading_enabled(False),  # a thread for each GPU needs a GPU
        without_values,
        FakeCuda() as gpu,
    ):
        yield gpu
