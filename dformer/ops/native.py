"""The kernels of csrc/ as Python sees them: which library serves a device, and the calls into it."""

import ctypes
import functools
import logging
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

MAX_CHANNELS, MAX_LEVELS = 256, 64  # of the CUDA kernels
CUDA_DTYPES = ("float32", "float64", "float16", "bfloat16")

logger = logging.getLogger(__name__)


class Library(NamedTuple):
    """Hold the functions dformer_<kind>_...; `kind` is cpu or cuda."""

    kind: str
    functions: ctypes.CDLL


class State(NamedTuple):
    """Hold what serves a device: a library, or None; `explanation` says which or why, in short in its first line."""

    library: Library | None
    explanation: str


class Sizes(ctypes.Structure):
    """Hold the sizes of a call, as in csrc."""

    _fields_ = [("shapes", ctypes.POINTER(ctypes.c_int64))] + [
        (name, ctypes.c_int64) for name in ("batch", "cells", "heads", "channels", "queries", "levels", "points")
    ]


def sizes(value: Tensor, spatial_shapes: list[int], locations: Tensor) -> Sizes:
    """Return the sizes of a call."""
    shapes = (ctypes.c_int64 * len(spatial_shapes))(*spatial_shapes)
    return Sizes(shapes, *value.shape, locations.shape[1], *locations.shape[3:5])


@functools.cache
def state(kind: str, index: int | None = None) -> State:
    """Find what serves the device of type `kind` with that index; the first call may compile it."""
    from dformer.ops import build  # here, so that it can be run as a command

    forced = os.environ.get("DFORMER_OPS", "").strip().lower()
    if forced == "reference":
        return State(None, "DFORMER_OPS=reference")
    if forced:
        return State(None, f"DFORMER_OPS is {forced!r}; it may be reference, or not set")
    if kind not in build.SOURCES:
        return State(None, f"there are no kernels for {kind}")
    if kind == "cuda" and not torch.cuda.is_available():
        return State(None, "PyTorch sees no GPU")
    rejected: dict[Path, OSError] = {}

    def load() -> State | None:
        for path in build.libraries(kind):
            try:
                return open_library(kind, index, path)
            except OSError as error:
                rejected[path] = error
        return None

    try:
        if found := load():
            return found
        kinds = build.requested_kinds()
        if kinds is not None and kind not in kinds:
            raise build.BuildError(f"DFORMER_BUILD_OPS={os.environ['DFORMER_BUILD_OPS']}, and no library fits")
        with build.lock(build.cache()):  # another process may have built it while this one waited
            return load() or open_library(kind, index, build.compile_library(kind, build.cache()))
    except (build.BuildError, OSError) as error:
        return State(None, "\n".join([str(error), *(f"{path}: {reason}" for path, reason in rejected.items())]))


def open_library(kind: str, index: int | None, path: Path) -> State:
    """Load a library; raise `OSError` if it does not work here."""
    functions = ctypes.CDLL(str(path))
    if kind == "cpu":
        functions.dformer_cpu_isa.restype = ctypes.c_char_p
        return State(Library(kind, functions), f"{functions.dformer_cpu_isa().decode()}, {path}")
    major, expected = functions.dformer_cuda_major(), torch.version.cuda
    if expected is None or major != int(expected.partition(".")[0]):
        raise OSError(f"is for CUDA {major}, this PyTorch for {f'CUDA {expected}' if expected else 'none'}")
    library = cuda_library(functions)
    with torch.cuda.device(index):
        if error := functions.dformer_cuda_check():
            raise OSError(f"does not run on {torch.cuda.get_device_name()}: {error.decode()}")
    return State(library, str(path))


def cuda_library(functions: ctypes.CDLL) -> Library:
    """Set the type of what the functions return: null, or an error message."""
    calls = [f"{call}_{dtype}" for call in ("forward", "backward") for dtype in CUDA_DTYPES]
    for name in ("check", *calls):
        getattr(functions, f"dformer_cuda_{name}").restype = ctypes.c_char_p
    return Library("cuda", functions)


@functools.cache
def library(kind: str, index: int | None) -> Library | None:
    """Return the library that serves a device; log once if there is none, unless that was asked for."""
    found = state(kind, index)
    if found.library is None and not found.explanation.startswith("DFORMER_OPS=reference"):
        reason = found.explanation.partition("\n")[0]
        logger.warning(
            f"ms_deform_attn runs in plain PyTorch on {kind}, which is slower: {reason}. "
            "In full: python -m dformer.apps.env"
        )
    return found.library


def find_library(value: Tensor, spatial_shapes: list[int]) -> Library | None:
    """Return the library that can compute a call, if any."""
    found = library(value.device.type, value.device.index)
    if found is None or value.shape[1] >= 2**31:  # cells are counted in 32 bits
        return None
    if found.kind == "cuda" and (value.shape[3] > MAX_CHANNELS or len(spatial_shapes) > 2 * MAX_LEVELS):
        return None
    return found


def _invoke(
    library: Library, name: str, value: Tensor, spatial_shapes: list[int], locations: Tensor, *tensors: Tensor | None
) -> None:
    """Run dformer_<kind>_<name>_<dtype> with contiguous `tensors`; on CUDA on the current stream of their device."""
    size = ctypes.byref(sizes(value, spatial_shapes, locations))
    dtype = str(value.dtype).removeprefix("torch.")
    function = getattr(library.functions, f"dformer_{library.kind}_{name}_{dtype}")
    pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
    if library.kind == "cpu":
        function(size, torch.get_num_threads(), *pointers)
        return
    with torch.cuda.device(value.device):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if error := function(size, stream, *pointers):
            raise RuntimeError(f"ms_deform_attn: {error.decode()}")


def forward(library: Library, value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    """Compute `dformer.ops.reference.ms_deform_attn`."""
    if library.kind == "cpu" and value.dtype == torch.float16:
        return forward(library, value.float(), spatial_shapes, locations, weights).to(value.dtype)
    output = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    inputs = [tensor.contiguous() for tensor in (value, locations, weights)]
    _invoke(library, "forward", value, spatial_shapes, locations, *inputs, output)
    return output


def backward(
    library: Library, grad_output: Tensor, value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients by value, locations and weights; the first is summed in the precision of the locations."""
    if library.kind == "cpu" and value.dtype == torch.float16:
        grads = backward(library, grad_output.float(), value.float(), spatial_shapes, locations, weights)
        return grads[0].to(value.dtype), *grads[1:]
    grad_locations = torch.empty_like(locations, memory_format=torch.contiguous_format)
    grad_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    inputs = [tensor.contiguous() for tensor in (grad_output, value, locations, weights)]
    run = functools.partial(_invoke, library, "backward", value, spatial_shapes, locations, *inputs)
    if library.kind == "cuda" and torch.are_deterministic_algorithms_enabled():
        scale = _fixed_scale(grad_output, locations, weights)
        fixed = value.new_zeros(value.shape, dtype=torch.int64)
        run(scale, fixed, grad_locations, grad_weights)
        grad_value = torch.where(scale.isfinite(), fixed / scale, torch.nan)
    else:
        scale_argument = [None] if library.kind == "cuda" else []  # on the CPU each sum has one owner and one order
        grad_value = value.new_zeros(value.shape, dtype=locations.dtype)
        run(*scale_argument, grad_value, grad_locations, grad_weights)
    return grad_value.to(value.dtype), grad_locations, grad_weights


def _fixed_scale(grad_output: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The factor, a power of two, by which gradients are scaled to be summed as int64; not finite where they are not.

    A cell gets at most one contribution of each query and point of its level, none larger than the largest gradient
    times the largest weight: scaled, the sum stays below 2^62.
    """
    contributions = locations.shape[1] * locations.shape[4]
    largest = grad_output.abs().amax().double() * weights.abs().amax().double() * contributions
    _, exponent = torch.frexp(largest)
    # ldexp takes powers of two in the type of the exponent, where float32 ends at 2^127
    scale = torch.ldexp(torch.ones_like(largest), (62 - exponent).clamp(max=1000).double())
    return torch.where(largest.isfinite(), scale, torch.inf)
