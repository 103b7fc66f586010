"""The operator on all that it runs on: against the published implementation's tensors, and against its definition."""

import logging
from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from dformer.ops import ms_deform_attn, native, reference

Inputs = tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]
# Of float64 on the same, rounded, inputs: relative to the largest number of a tensor.
ERROR = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def random_inputs(
    device, dtype=torch.float64, *, batch=2, heads=2, channels=8, queries=7, points=3, shapes=((4, 5), (2, 3)), seed=0
) -> Inputs:
    """Two thirds of the points inside, some about the border."""
    generator = torch.Generator().manual_seed(seed)
    cells = sum(h * w for h, w in shapes)
    grid = (batch, queries, heads, len(shapes), points)
    value = torch.randn(batch, cells, heads, channels, generator=generator, dtype=torch.float64).to(dtype)
    locations = torch.rand(*grid, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(*grid, generator=generator, dtype=torch.float64)
    other = torch.float64 if dtype == torch.float64 else torch.float32
    return value.to(device), list(shapes), locations.to(device, other), weights.to(device, other)


def differentiate(inputs: Inputs, grad_output: Tensor) -> list[Tensor]:
    """Output and gradients by value, locations, weights."""
    value, shapes, locations, weights = inputs
    leaves = [x.detach().requires_grad_() for x in (value, locations, weights)]
    output = ms_deform_attn(leaves[0], shapes, *leaves[1:])
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output.to(output).expand_as(output))]


def by_definition(inputs: Inputs, grad_output: Tensor) -> list[Tensor]:
    """The same by autograd through the reference, in float64 on the CPU."""
    value, shapes, locations, weights = inputs
    leaves = [x.detach().double().cpu().requires_grad_() for x in (value, locations, weights)]
    output = reference.ms_deform_attn(leaves[0], [size for shape in shapes for size in shape], *leaves[1:])
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output.double().cpu().expand_as(output))]


def assert_as_defined(inputs: Inputs, seed: int = 0) -> None:
    value, _, locations, weights = inputs
    shape = (value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    grad_output = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(value.dtype)
    ours, expected = differentiate(inputs, grad_output), by_definition(inputs, grad_output)
    dtypes = (value.dtype, value.dtype, locations.dtype, weights.dtype)
    for mine, right, dtype in zip(ours, expected, dtypes, strict=True):
        assert mine.dtype == dtype
        error = (mine.double().cpu() - right).abs().max() if right.numel() else 0
        assert error <= ERROR[dtype] * max(right.abs().max(), 1) if right.numel() else mine.shape == right.shape


@pytest.mark.golden
def test_golden(golden_dir, device):
    golden = {name: tensor.to(device) for name, tensor in load_file(golden_dir / "ms_deform_attn.safetensors").items()}
    names = ("value", "sampling_locations", "attention_weights")
    value, locations, weights = (golden[name].requires_grad_() for name in names)
    output = ms_deform_attn(value, golden["spatial_shapes"], locations, weights)
    torch.testing.assert_close(output, golden["output"], rtol=0, atol=1e-10)
    gradients = torch.autograd.grad(output, (value, locations, weights), golden["grad_output"])
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(gradient, golden[f"grad_{name}"], rtol=0, atol=1e-8)


SIZES = {
    "batch": st.integers(1, 2),
    "heads": st.integers(1, 3),
    "channels": st.sampled_from([1, 3, 8, 20, 32, 65]),
    "queries": st.integers(1, 70),
    "points": st.integers(1, 5),
    "shapes": st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
}


@given(st.fixed_dictionaries(SIZES), st.sampled_from(list(ERROR)), st.integers(0, 99))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_is_as_defined(device, sizes, dtype, seed):
    assert_as_defined(random_inputs(device, dtype, **sizes, seed=seed), seed)


@pytest.mark.parametrize(
    ("dtype", "channels", "points"),
    [(dtype, 32, 3) for dtype in ERROR]
    + [(torch.float32, 256, 3), (torch.float64, 256, 3), (torch.float16, 250, 3)]
    + [(torch.float32, 8, 33)],  # more points than are taken at once
)
def test_head_dimensions(device, dtype, channels, points):
    sizes = dict(channels=channels, points=points, queries=40, shapes=((6, 7), (5, 4), (2, 2)))
    assert_as_defined(random_inputs(device, dtype, **sizes))


@pytest.mark.parametrize("dtype", list(ERROR))
def test_borders(device, dtype):
    """Points on borders, on cells' centres, in corners, and far away; sizes are such that float32 has all exactly."""
    places = torch.tensor([-1e30, -1e4, -1, -0.125, 0, 0.0625, 0.125, 0.5, 0.875, 1, 1.125, 2, 1e4, 1e30])
    locations = torch.cartesian_prod(places, places).view(1, -1, 1, 1, 1, 2).to(device)
    value, _, _, weights = random_inputs(
        device, dtype, batch=1, heads=1, queries=len(places) ** 2, points=1, shapes=((4, 8),)
    )
    inputs = (value, [(4, 8)], locations.to(weights), weights)
    assert all(x.isfinite().all() for x in differentiate(inputs, torch.ones(())))
    assert_as_defined(inputs)


def test_locations_that_are_not_finite_are_outside(device, request):
    if "reference" in request.node.name:
        pytest.skip("grid_sample gives NaN")
    inputs = random_inputs(device, torch.float32, points=1)
    inputs[2][:] = torch.tensor([torch.nan, 0.5])
    inputs[2][:, ::2] = torch.tensor([0.5, torch.inf])
    assert not any(x.any() for x in differentiate(inputs, torch.ones(())))


def test_a_cell_outside_of_a_level_is_not_read(device):
    """Not even with weight 0: what lies beside a level in memory may be infinite."""
    value, shapes, locations, weights = random_inputs(device, torch.float32, batch=1, queries=50, shapes=((2, 2),) * 3)
    locations[..., 0, :, :] = locations[..., 2, :, :] = 9
    value[:, :4] = value[:, 8:] = torch.inf
    assert ms_deform_attn(value, shapes, locations, weights).isfinite().all()


def test_strides_do_not_matter(device):
    inputs = value, shapes, locations, weights = random_inputs(device)
    strided = (value.mT.contiguous().mT, shapes, locations.flip(1).contiguous().flip(1), weights.mT.contiguous().mT)
    assert not strided[0].is_contiguous()
    grad_output = torch.randn(2, 16, 7, device=device).mT
    torch.testing.assert_close(differentiate(strided, grad_output), differentiate(inputs, grad_output))


def test_memory_that_is_not_aligned(device):
    value, shapes, locations, weights = random_inputs(device, torch.float32, channels=32)
    shifted = torch.empty(value.numel() + 1, device=device)[1:].view(value.shape).copy_(value)
    assert_as_defined((shifted, shapes, locations, weights))


@pytest.mark.parametrize("empty", ["batch", "heads", "channels", "queries", "points"])
def test_empty(device, empty):
    inputs = random_inputs(device, torch.float32, **{empty: 0})
    value, _, locations, _ = inputs
    output, *gradients = differentiate(inputs, torch.ones(()))
    assert output.shape == (value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    assert not any(x.any() for x in (output, *gradients))
    assert [x.shape for x in gradients] == [x.shape for x in (inputs[0], *inputs[2:])]


def test_gradcheck_and_opcheck(device):
    value, shapes, locations, weights = random_inputs(device, batch=1, queries=2, channels=4, points=2)
    sizes = [size for shape in shapes for size in shape]
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    torch.autograd.gradcheck(lambda v, *others: ms_deform_attn(v, shapes, *others), leaves, nondet_tol=1e-12)
    torch.library.opcheck(torch.ops.dformer.ms_deform_attn.default, (value, sizes, locations, weights))
    inputs = (torch.randn(1, 2, 8, device=device).double(), *(x.detach() for x in (value, locations, weights)))
    torch.library.opcheck(torch.ops.dformer.ms_deform_attn_backward.default, (*inputs[:2], sizes, *inputs[2:]))


@contextmanager
def deterministic(is_on: bool):
    torch.use_deterministic_algorithms(is_on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_gradients_do_not_depend_on_chance(device):
    """Where that is asked for: not on the threads on a CPU, not on their order on a GPU."""
    if native.library(device.type, device.index) is None:
        pytest.skip("PyTorch's own kernels do not promise it")
    inputs = random_inputs(device, torch.float32, queries=300, channels=32)
    grad_output = torch.randn(2, 300, 64, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    with deterministic(True):
        first = differentiate(inputs, grad_output)
        torch.set_num_threads(3)
        second = differentiate(inputs, grad_output)
        torch.set_num_threads(threads)
        assert_as_defined(inputs)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("device", ["emulated CUDA"], indirect=True)
def test_order_does_not_change_the_deterministic_sums(device):
    """Queries in another order are blocks and threads in another order: sums of floats differ, fixed ones do not."""
    value, shapes, locations, weights = random_inputs(device, torch.float32, queries=70, channels=32)
    grad_output = torch.randn(2, 70, 64)
    order = torch.randperm(70)

    def by_value(is_deterministic: bool) -> tuple[Tensor, Tensor]:
        with deterministic(is_deterministic):
            in_order = differentiate((value, shapes, locations, weights), grad_output)[1]
            other = (value, shapes, locations[:, order], weights[:, order])
            return in_order, differentiate(other, grad_output[:, order])[1]

    assert torch.equal(*by_value(True)) and not torch.equal(*by_value(False))
    grad_output[0, 0, 0] = torch.inf
    assert by_value(True)[0].isnan().all()  # not hidden


@pytest.mark.parametrize("device", ["emulated CUDA", pytest.param("CUDA", marks=pytest.mark.gpu)], indirect=True)
@pytest.mark.parametrize("size", [1e-36, 1e-20, 1e20])
def test_gradients_of_any_size_are_summed_deterministically(device, size):
    inputs = random_inputs(device, torch.float32)
    grad_output = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    with deterministic(True):
        small = differentiate(inputs, size * grad_output)[1:]
    for mine, right in zip(small, by_definition(inputs, grad_output)[1:], strict=True):
        torch.testing.assert_close(mine.double().cpu() / size, right, rtol=1e-4, atol=1e-4)


def test_a_second_derivative_is_an_error(device):
    value, shapes, locations, weights = random_inputs(device)
    output = ms_deform_attn(value.requires_grad_(), shapes, locations.requires_grad_(), weights)
    (gradient,) = torch.autograd.grad(output.sum(), locations, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(gradient.sum(), value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_runs_on_the_current_stream_and_never_waits():
    """Else it could not be captured in a graph."""
    inputs = random_inputs(torch.device("cuda"), torch.float32)
    grad_output = torch.ones(2, 7, 16, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        differentiate(inputs, grad_output)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = differentiate(inputs, grad_output)
    inputs[0].mul_(2)
    graph.replay()
    torch.testing.assert_close(captured, differentiate(inputs, grad_output))


def test_autocast(device):
    value, shapes, locations, weights = random_inputs(device, torch.float32)
    with torch.autocast(device.type, torch.bfloat16):
        leaves = [x.requires_grad_() for x in (value, locations, weights)]
        output = ms_deform_attn(leaves[0], shapes, *leaves[1:])
        assert ms_deform_attn(value.double(), shapes, locations, weights).dtype == torch.float64
    expected = ms_deform_attn(value.bfloat16(), shapes, locations, weights)
    assert output.dtype == torch.bfloat16 and torch.equal(output, expected)
    gradients = torch.autograd.grad(output.float().sum(), leaves)
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 3


def test_half_precision_coordinates(device):
    """A model that is bfloat16 altogether."""
    value, shapes, locations, weights = (x if isinstance(x, list) else x.bfloat16() for x in random_inputs(device))
    output, *gradients = differentiate((value, shapes, locations, weights), torch.ones(()))
    assert {x.dtype for x in (output, *gradients)} == {torch.bfloat16}
    torch.testing.assert_close(output, ms_deform_attn(value, shapes, locations.float(), weights.float()))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v, s, a, w: (v.flatten(2), s, a, w), r"value.*\(2, 26, 16\)"),
        (lambda v, s, a, w: (v[:1], s, a, w), r"value.*\(1, 26, 2, 8\)"),
        (lambda v, s, a, w: (v, s, a[..., :1], w), r"sampling_locations.*\(2, 7, 2, 2, 3, 1\)"),
        (lambda v, s, a, w: (v, s, a, w[:, :3]), r"attention_weights.*\(2, 3, 2, 2, 3\)"),
        (lambda v, s, a, w: (v, s[:1], a, w), r"spatial_shapes.*\[4, 5\]"),
        (lambda v, s, a, w: (v, [(4, 5), (-2, -3)], a, w), "spatial_shapes.*-2, -3"),
        (lambda v, s, a, w: (v, [(4, 5), (2, 4)], a, w), "spatial_shapes.*26"),
        (lambda v, s, a, w: (v.int(), s, a, w), "value.*int32"),
        (lambda v, s, a, w: (v, s, a.to("meta"), w), "sampling_locations.*meta"),
    ],
)
def test_wrong_sizes_are_an_error_before_memory_is_read(change, named):
    with pytest.raises(ValueError, match=named):
        ms_deform_attn(*change(*random_inputs(torch.device("cpu"))))


@pytest.mark.parametrize("device", ["emulated CUDA"], indirect=True)
def test_beyond_the_cuda_kernels_the_reference_runs(device):
    assert_as_defined(random_inputs(device, channels=257, queries=2, points=1))
    assert_as_defined(random_inputs(device, shapes=((1, 1),) * 65, queries=2, points=1))


@pytest.mark.parametrize(("choice", "count"), [("reference", 0), ("unknown", 1)])
def test_a_slower_path_is_logged_once_unless_requested(monkeypatch, caplog, choice, count):
    monkeypatch.setenv("DFORMER_OPS", choice)
    native.state.cache_clear()
    native.library.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            ms_deform_attn(*random_inputs(torch.device("cpu")))
    native.state.cache_clear()
    native.library.cache_clear()
    assert ["DFORMER_OPS" in record.getMessage() for record in caplog.records] == [True] * count
