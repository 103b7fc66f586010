"""Multi-scale deformable attention (Deformable DETR, Zhu et al. 2021, Eq. 3), after the linear projections.

Shapes: B batch, L levels of h_l x w_l cells, S = sum h_l w_l, Q queries, M heads, D channels a head, P points a level.

`ms_deform_attn` is the operator `dformer::ms_deform_attn` of PyTorch's dispatcher. On the CPU and on CUDA it runs the
kernels of csrc/; on other devices, and where these are not available, `reference`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from dformer.ops import native, reference


def implementation(device: torch.device | str = "cpu") -> str:
    """Return what `ms_deform_attn` runs on `device`: "native", or "reference" in plain PyTorch."""
    return "native" if _state(device).library else "reference"


def explanation(device: torch.device | str = "cpu") -> str:
    """Return the library that `ms_deform_attn` runs on `device`, or why there is none, in short in the first line."""
    return _state(device).explanation


def _state(device: torch.device | str) -> native.State:
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    return native.state(device.type, device.index)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sum attention weight x bilinearly sampled value over levels and points; outside of a level the value is 0.

    Sums and coordinates are float32, or float64 where `value` is. Under autocast `value` is cast to its dtype, the
    others are not. Gradients are those of the same sums; a second derivative is a `RuntimeError`.

    Args:
        value: (B, S, M, D), the levels one after the other, each row by row; float16, bfloat16, float32, float64.
        spatial_shapes: (L, 2), h_l and w_l: numbers, or an int64 tensor on the CPU (on a GPU it costs a
            synchronisation, and under torch.compile a graph break).
        sampling_locations: (B, Q, M, L, P, 2), x and y; (0, 0) is the upper left corner of a level, (1, 1) the lower
            right. NaN counts as outside.
        attention_weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M * D), in the dtype of `value`.

    Raises:
        ValueError: sizes or devices do not fit together.
    """
    rows = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    sizes = [size for row in rows for size in row]
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    return torch.ops.dformer.ms_deform_attn(value, sizes, sampling_locations.to(dtype), attention_weights.to(dtype))


LIBRARY = torch.library.Library("dformer", "DEF")
LIBRARY.define(
    "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights) "
    "-> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
LIBRARY.define(
    "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
    "Tensor attention_weights) -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


def _check(value: Tensor, spatial_shapes: list[int], sampling_locations: Tensor, attention_weights: Tensor) -> None:
    """Raise `ValueError` unless sizes, dtypes and devices are as documented: kernels read memory by them."""

    def require(condition: bool, rule: str, *found: object) -> None:
        if not condition:
            raise ValueError(f"ms_deform_attn: {rule}; got {', '.join(map(str, found))}")

    shapes = tuple(tuple(x.shape) for x in (value, sampling_locations, attention_weights))
    rule = "value must be (B, S, M, D), sampling_locations (B, Q, M, L, P, 2) and attention_weights (B, Q, M, L, P)"
    require((value.ndim, sampling_locations.ndim) == (4, 6), rule, *shapes)
    batch, cells, heads, _ = shapes[0]
    _, queries, _, levels, points, _ = shapes[1]
    expected = (batch, queries, heads, levels, points)
    require(shapes[1:] == ((*expected, 2), expected), rule, *shapes)
    sizes = list(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=False))
    is_pairs = len(spatial_shapes) == 2 * levels and all(size >= 0 for size in spatial_shapes)
    require(is_pairs, f"spatial_shapes must be {levels} pairs of sizes", spatial_shapes)
    require(sum(h * w for h, w in sizes) == cells, f"spatial_shapes must have the {cells} cells of value", sizes)
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    require(value.dtype in floats, "value must be float16, bfloat16, float32 or float64", value.dtype)
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    dtypes = (sampling_locations.dtype, attention_weights.dtype)
    require(dtypes == (dtype, dtype), f"for {value.dtype} values, locations and weights must be {dtype}", *dtypes)
    devices = (value.device, sampling_locations.device, attention_weights.device)
    require(len(set(devices)) == 1, "value, sampling_locations and attention_weights must be on one device", *devices)


def _forward(value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    _check(value, spatial_shapes, locations, weights)
    if 0 in (*value.shape, *locations.shape):
        return _fake_forward(value, spatial_shapes, locations, weights).zero_()
    library = native.find_library(value, spatial_shapes)
    if library is None:
        return reference.ms_deform_attn(value, spatial_shapes, locations, weights)
    return native.forward(library, value, spatial_shapes, locations, weights)


def _backward(grad_output: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Gradients by value, locations and weights."""
    _check(*inputs)
    value, spatial_shapes, locations, weights = inputs
    if 0 in (*value.shape, *locations.shape):
        return tuple(map(torch.zeros_like, (value, locations, weights)))
    library = native.find_library(value, spatial_shapes)
    if library is None:
        return reference.ms_deform_attn_backward(grad_output, *inputs)
    return native.backward(library, grad_output, *inputs)


def _autocast(device: str) -> Callable[..., Tensor]:
    """Return the kernel under autocast on `device`: values are cast to its dtype, coordinates are not."""

    def kernel(value: Tensor, *others: Any) -> Tensor:
        if value.dtype != torch.float64:  # as PyTorch's own rules
            value = value.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return torch.ops.dformer.ms_deform_attn(value, *others)

    return kernel


def _fake_forward(value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    _check(value, spatial_shapes, locations, weights)
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


def _fake_backward(_: Tensor, value: Tensor, spatial_shapes: list[int], *others: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (value, *others))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.dformer.ms_deform_attn_backward(
        grad_output, value, ctx.spatial_shapes, locations, weights
    )
    return grad_value, None, grad_locations, grad_weights


def _differentiate_twice(ctx: Any, *_: Tensor) -> NoReturn:
    raise RuntimeError("ms_deform_attn has no second derivative")  # without this, it would silently be zero


LIBRARY.impl("ms_deform_attn", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("ms_deform_attn_backward", _backward, "CompositeExplicitAutograd")
LIBRARY.impl("ms_deform_attn", _autocast("cpu"), "AutocastCPU")
LIBRARY.impl("ms_deform_attn", _autocast("cuda"), "AutocastCUDA")
torch.library.register_fake("dformer::ms_deform_attn", _fake_forward, lib=LIBRARY)
torch.library.register_fake("dformer::ms_deform_attn_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd("dformer::ms_deform_attn", _differentiate, setup_context=_save, lib=LIBRARY)
torch.library.register_autograd("dformer::ms_deform_attn_backward", _differentiate_twice, lib=LIBRARY)
