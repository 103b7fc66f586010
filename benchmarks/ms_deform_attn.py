#!/usr/bin/env python3
"""Time and memory of multi-scale deformable attention: our kernels, plain PyTorch and other packages, in turns.

python benchmarks/ms_deform_attn.py [--device cuda] [--dtypes float32 bfloat16] [--cases 1024] [--json FILE]

Each round times every implementation once, forward, and forward with backward. On a GPU the cache is overwritten before
each timing; msda-triton takes part where it is installed, and csrc/plain_cuda.cu, compiled here. Bandwidth counts bytes
that must be moved at least: value, locations and weights in, output out; a copy is measured beside it. Points are near
their queries, as in a trained encoder; in two more rows all points of our kernels are in one place, or anywhere, which
separates arithmetic from memory.
"""

import ctypes
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import environment, medians, milliseconds, parser, peak_memory, report
from torch import Tensor

from dformer.ops import build, explanation, implementation, ms_deform_attn, native, reference

HEADS, CHANNELS, POINTS, STRIDES = 8, 32, 4, (8, 16, 32)
Operator = Callable[[Tensor, list[tuple[int, int]], Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """Describe the operator's input."""

    name: str
    height: int
    width: int
    batch: int
    queries: int | None = None  # None: an encoder's, one for each cell
    points: str = "near"  # their queries; or "one place", "anywhere"


SIZES = ((512, 512), (800, 1333), (1024, 1024))
CASES = [Case(f"encoder {h}x{w}, batch {batch}", h, w, batch) for h, w in SIZES for batch in (1, 4)]
CASES += [Case(f"decoder 800x1333, batch {batch}", 800, 1333, batch, queries=300) for batch in (1, 4)]
CASES += [
    Case(f"encoder 1024x1024, batch 1, points {p}", 1024, 1024, 1, points=p) for p in ("in one place", "anywhere")
]


def inputs(case: Case, dtype: torch.dtype, device: str) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
    """Return value, sizes of the levels, sampling locations and attention weights."""
    generator = torch.Generator(device).manual_seed(0)
    sizes = [(-(-case.height // stride), -(-case.width // stride)) for stride in STRIDES]  # rounded up
    cells = sum(h * w for h, w in sizes)
    centres = [torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(1) for h, w in sizes]
    queries = torch.cat(centres).to(device)
    if case.queries:
        queries = queries[torch.randint(cells, (case.queries,), generator=generator, device=device)]
    grid = (case.batch, len(queries), HEADS, len(sizes), POINTS)
    offsets = 2 * torch.randn(*grid, 2, generator=generator, device=device)  # cells
    extent = torch.tensor([[w, h] for h, w in sizes], device=device)[:, None]
    locations = queries[:, None, None, None] + offsets / extent
    if case.points == "in one place":
        locations = torch.full_like(locations, 0.4)
    elif case.points == "anywhere":
        locations = torch.rand(*grid, 2, generator=generator, device=device)
    weights = torch.rand(grid, generator=generator, device=device).flatten(3).softmax(-1).view(grid)
    value = torch.randn(case.batch, cells, HEADS, CHANNELS, generator=generator, device=device).to(dtype)
    return value, sizes, locations, weights


def plain_cuda(folder: Path) -> Operator:
    """Build plain_cuda.cu for this machine's GPUs."""
    compiler, _ = build.nvcc()
    targets = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (a.replace(".", "") for a in build.architectures())]
    source = Path(__file__).parent / "csrc/plain_cuda.cu"
    build.run([compiler, *build.FLAGS["cuda"], *targets, str(source), "-o", str(folder / "plain.so")])
    library = ctypes.CDLL(str(folder / "plain.so"))

    def call(name: str, size: native.Sizes, *tensors: Tensor) -> None:
        function = getattr(library, f"plain_{name}_{str(tensors[0].dtype).removeprefix('torch.')}")
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if error := function(ctypes.byref(size), stream, *(ctypes.c_void_p(x.data_ptr()) for x in tensors)):
            raise RuntimeError(f"plain_cuda.cu: CUDA error {error}")

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            ctx.size = native.sizes(value, [], locations)
            ctx.size.shapes = ctypes.cast(shapes.data_ptr(), ctypes.POINTER(ctypes.c_int64))  # on the device
            ctx.save_for_backward(value, shapes, locations, weights)
            output = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
            call("forward", ctx.size, value, locations, weights, output)
            return output

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Any:
            value, _, locations, weights = ctx.saved_tensors
            grads = torch.zeros_like(value, dtype=torch.float32), *map(torch.empty_like, (locations, weights))
            call("backward", ctx.size, grad_output.contiguous(), value, locations, weights, *grads)
            return grads[0].to(value.dtype), None, *grads[1:]

    shapes: dict[str, Tensor] = {}

    def operator(value: Tensor, sizes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
        on_device = shapes.setdefault(str(sizes), torch.tensor(sizes, device=value.device))
        return Plain.apply(value, on_device, locations, weights)

    return operator


def msda_triton() -> Operator:
    """Return the operator of msda-triton."""
    from msda_triton.frontend import triton_multiscale_deformable_attention as attention  # type: ignore

    def operator(value: Tensor, sizes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
        shapes = torch.tensor(sizes, device=value.device)
        return attention(value, shapes, locations.to(value.dtype), weights.to(value.dtype), "zeros", False).flatten(2)

    return operator


def implementations(device: str, folder: Path) -> dict[str, Operator]:
    """Return our kernels, the reference, and the others that are installed; say which are not."""
    found: dict[str, Operator] = {
        f"dformer ({implementation(device)})": ms_deform_attn,
        "reference": lambda value, sizes, *rest: reference.ms_deform_attn(value, sum(map(list, sizes), []), *rest),
    }
    others: dict[str, Callable[[], Operator]] = {"msda-triton": msda_triton, "plain CUDA": lambda: plain_cuda(folder)}
    for name, make in others.items() if device == "cuda" else ():
        try:
            found[name] = make()
        except (ImportError, AttributeError, build.BuildError) as error:
            print(f"without {name}: {error}")
    return found


def measure(
    case: Case, dtype: str, operators: dict[str, Operator], device: str, rounds: int, flush: Tensor | None
) -> list[dict[str, Any]]:
    """Return a row for each operator that can do the case."""
    value, sizes, locations, weights = inputs(case, getattr(torch, dtype), device)
    leaves = [x.detach().requires_grad_() for x in (value, locations, weights)]
    expected = ms_deform_attn(value.double(), sizes, locations.double(), weights.double())
    grad_output = torch.randn_like(expected, dtype=value.dtype)

    @torch.no_grad()
    def forward(operator: Operator) -> Tensor:
        return operator(value, sizes, locations, weights)

    def both(operator: Operator) -> tuple[Tensor, ...]:
        return torch.autograd.grad(operator(leaves[0], sizes, *leaves[1:]), leaves, grad_output)

    runs: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, operator in operators.items():
        try:
            error = (forward(operator).view(expected.shape) - expected).abs().max() / expected.abs().max()
            both(operator)
        except Exception as problem:  # another package's limits, of any kind
            print(f"{name} cannot do {case.name} in {dtype}: {problem}")
            continue
        if error > 0.02:
            print(f"{name} is wrong by {error:.3f} of the largest output")
        runs |= {(name, "forward"): partial(forward, operator), (name, "both"): partial(both, operator)}
    times = medians({key: partial(milliseconds, run, flush) for key, run in runs.items()}, rounds)
    moved = sum(x.numel() * x.element_size() for x in (value, locations, weights, grad_output))
    return [
        {
            "implementation": name,
            "device": device,
            "dtype": dtype,
            "case": case.name,
            "forward_ms": round(times[name, "forward"], 4),
            "forward_backward_ms": round(times[name, "both"], 4),
            "peak_mib": round(peak_memory(runs[name, "both"], device), 1),
            "forward_peak_mib": round(peak_memory(runs[name, "forward"], device), 1),
            "forward_gb_per_s": round(moved / times[name, "forward"] / 1e6, 2),
        }
        for name in dict.fromkeys(name for name, _ in runs)
    ]


def limits(device: str, rounds: int) -> dict[str, float]:
    """Measure what the device does at its best: a copy of 1 GiB (256 MiB on a CPU), and a product of matrices."""
    size = 2**30 if device == "cuda" else 2**28
    source, matrix = torch.ones(size, dtype=torch.uint8, device=device), torch.randn(2048, 2048, device=device)
    target, product = torch.empty_like(source), torch.empty_like(matrix)
    runs = {"copy": lambda: target.copy_(source), "product": lambda: torch.mm(matrix, matrix, out=product)}
    times = medians({name: partial(milliseconds, run) for name, run in runs.items()}, 2 * rounds)
    return {
        "copy_gb_per_s": round(2 * size / times["copy"] / 1e6, 2),
        "float32_matrix_product_gflop_per_s": round(2 * 2048**3 / times["product"] / 1e6, 1),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="also float16, float64")
    options.add_argument("--cases", default="", help="only those whose name contains this")
    options.add_argument("--rounds", type=int, default=7)
    args = options.parse_args()
    flush = torch.empty(3 * 2**30, dtype=torch.uint8, device="cuda") if args.device == "cuda" else None
    kernels = Path(explanation(args.device).splitlines()[0]).name
    about = {**environment(args.device), "kernels": kernels, **limits(args.device, args.rounds)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        operators = implementations(args.device, Path(folder))
        for case, dtype in product((case for case in CASES if args.cases in case.name), args.dtypes):
            print(f"{case.name}, {dtype}", file=sys.stderr)
            chosen = operators if case.points == "near" else dict(list(operators.items())[:1])
            rows += measure(case, dtype, chosen, args.device, args.rounds, flush)
    report(rows, about, args.json)


if __name__ == "__main__":
    main()
