"""Times multi-scale deformable attention: dformer's kernels, the reference, and what else can be imported, in turns.

    python benchmarks/ms_deform_attn.py [--device cuda] [--dtypes float32 bfloat16] [--cases 1024] [--json FILE]

Each round times every implementation once, forward, and forward with backward; medians are told. On a GPU the cache is
overwritten before each timing. Peers take part where they are installed: msda-triton, transformers (with the kernels
that it finds); and, built here, plain_cuda.cu. Bandwidth is of the bytes that must be moved at least: value,
locations and weights in, output out; a copy is measured beside it. Points lie about their queries, as in an encoder at
work; two more rows put all points of dformer's kernels in one place, and anywhere, which tells arithmetic from memory.
"""

import argparse
import ctypes
import gc
import importlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dformer.ops import build, explanation, implementation, ms_deform_attn, native, reference
from dformer.utils.env import cpu_model

HEADS, CHANNELS, POINTS, STRIDES = 8, 32, 4, (8, 16, 32)


class Case(NamedTuple):
    name: str
    height: int
    width: int
    batch: int
    queries: int | None = None  # None: an encoder's, one a cell
    points: str = "near"  # their queries; or "one place", "anywhere"


CASES = [
    Case(f"encoder {h}x{w}, batch {batch}", h, w, batch)
    for h, w in ((512, 512), (800, 1333), (1024, 1024))
    for batch in (1, 4)
]
CASES += [Case(f"decoder 800x1333, batch {batch}", 800, 1333, batch, queries=300) for batch in (1, 4)]
PLACED = [
    Case(f"encoder 1024x1024, batch 1, points {p}", 1024, 1024, 1, points=p) for p in ("in one place", "anywhere")
]

Operator = Callable[[Tensor, list[tuple[int, int]], Tensor, Tensor], Tensor]


def inputs(
    case: Case, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
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


def by_reference(value: Tensor, sizes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    return reference.ms_deform_attn(value, [x for size in sizes for x in size], locations, weights)


def plain_cuda(folder: Path) -> Operator:
    """plain_cuda.cu, compiled for this machine's GPUs."""
    compiler, _ = build.nvcc()
    targets = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (a.replace(".", "") for a in build.architectures())]
    source = Path(__file__).with_name("plain_cuda.cu")
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
            size = native.sizes(value, [], locations)
            size.shapes = ctypes.cast(shapes.data_ptr(), ctypes.POINTER(ctypes.c_int64))  # on the device
            ctx.size = size
            ctx.save_for_backward(value, shapes, locations, weights)
            output = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
            call("forward", size, value, locations, weights, output)
            return output

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
            value, _, locations, weights = ctx.saved_tensors
            gradients = (
                torch.zeros_like(value, dtype=torch.float32),
                torch.empty_like(locations),
                torch.empty_like(weights),
            )
            call("backward", ctx.size, grad_output.contiguous(), value, locations, weights, *gradients)
            return gradients[0].to(value.dtype), None, *gradients[1:]

    shapes: dict[str, Tensor] = {}

    def operator(value: Tensor, sizes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
        on_device = shapes.setdefault(str(sizes), torch.tensor(sizes, device=value.device))
        return Plain.apply(value, on_device, locations, weights)

    return operator


def msda_triton() -> Operator:
    frontend = importlib.import_module("msda_triton.frontend")

    def operator(value: Tensor, sizes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
        shapes = torch.tensor(sizes, device=value.device)
        arguments = (value, shapes, locations.to(value.dtype), weights.to(value.dtype), "zeros", False)
        return frontend.triton_multiscale_deformable_attention(*arguments).flatten(2)

    return operator


def transformers() -> Operator:
    name = "transformers.models.deformable_detr.modeling_deformable_detr"
    module = importlib.import_module(name).MultiScaleDeformableAttention()

    def operator(value: Tensor, sizes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
        shapes = torch.tensor(sizes, device=value.device)
        start = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        return module(value, shapes, sizes, start, locations.to(value.dtype), weights.to(value.dtype), 64)

    return operator


def implementations(device: torch.device, folder: Path) -> dict[str, Operator]:
    """Ours, the reference, and the peers that are here; what is not is told."""
    found: dict[str, Operator] = {f"dformer ({implementation(device)})": ms_deform_attn, "reference": by_reference}
    peers: dict[str, Callable[[], Operator]] = {"transformers": transformers}
    if device.type == "cuda":
        peers |= {"msda-triton": msda_triton, "plain CUDA": lambda: plain_cuda(folder)}
    for name, make in peers.items():
        try:
            found[name] = make()
        except (ImportError, AttributeError, build.BuildError) as error:
            print(f"without {name}: {error}")
    return found


class Device:
    """A clock and a memory gauge."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.flush = torch.empty(2**30 if self.cuda else 0, dtype=torch.uint8, device=device)

    def time(self, run: Callable[[], object]) -> float:
        """Milliseconds."""
        if not self.cuda:
            start = time.perf_counter()
            run()
            return 1000 * (time.perf_counter() - start)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        for _ in range(3):
            self.flush.zero_()  # takes longer than it takes Python to launch what follows
        first.record()
        run()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last)

    def peak(self, run: Callable[[], object]) -> float:
        """MiB that `run` needs beyond what is there."""
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        run()
        return (resident("VmHWM") - before) / 2**10


def resident(field: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(
    case: Case, dtype: torch.dtype, operators: dict[str, Operator], device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    value, sizes, locations, weights = inputs(case, dtype, device)
    leaves = [x.detach().requires_grad_() for x in (value, locations, weights)]
    clock = Device(device)
    expected = ms_deform_attn(value.double(), sizes, locations.double(), weights.double())
    grad_output = torch.randn_like(expected, dtype=dtype)

    def forward(operator: Operator) -> Tensor:
        with torch.no_grad():
            return operator(value, sizes, locations, weights)

    def both(operator: Operator) -> tuple[Tensor, ...]:
        return torch.autograd.grad(operator(leaves[0], sizes, leaves[1], leaves[2]), leaves, grad_output)

    rows, times = [], {}
    for name, operator in operators.items():
        try:
            error = (forward(operator).view(expected.shape) - expected).abs().max() / expected.abs().max()
            both(operator)
        except Exception as problem:  # a peer's own limits: not ours to know
            print(f"{name} cannot do {case.name} in {dtype}: {problem}")
            continue
        if error > 0.02:
            print(f"{name} is wrong by {error:.3f} of the largest output")
        times[name] = ([], [])
    for _ in range(rounds):
        for name, (forwards, boths) in times.items():
            forwards.append(clock.time(lambda name=name: forward(operators[name])))
            boths.append(clock.time(lambda name=name: both(operators[name])))
    moved = sum(x.numel() * x.element_size() for x in (value, locations, weights, grad_output))
    for name, (forwards, boths) in times.items():
        milliseconds = statistics.median(forwards)
        rows.append(
            {
                "implementation": name,
                "device": str(device.type),
                "dtype": str(dtype).removeprefix("torch."),
                "case": case.name,
                "forward_ms": round(milliseconds, 4),
                "forward_backward_ms": round(statistics.median(boths), 4),
                "peak_mib": round(clock.peak(lambda name=name: both(operators[name])), 1),
                "forward_peak_mib": round(clock.peak(lambda name=name: forward(operators[name])), 1),
                "forward_gb_per_s": round(moved / milliseconds / 1e6, 2),
            }
        )
    return rows


def limits(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """What the device does at its best: a copy of 1 GiB (256 MiB on a CPU), and a product of matrices."""
    clock, size = Device(device), 2**30 if device.type == "cuda" else 2**28
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target, matrix = torch.empty_like(source), torch.randn(2048, 2048, device=device)
    product = torch.empty_like(matrix)
    copies = [clock.time(lambda: target.copy_(source)) for _ in range(2 * rounds)]
    products = [clock.time(lambda: torch.mm(matrix, matrix, out=product)) for _ in range(2 * rounds)]
    copy, multiply = statistics.median(copies), statistics.median(products)
    return [
        {"limit": "copy", "device": device.type, "gb_per_s": round(2 * size / copy / 1e6, 2)},
        {
            "limit": "float32 matrix product",
            "device": device.type,
            "gflop_per_s": round(2 * 2048**3 / multiply / 1e6, 1),
        },
    ]


def where(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    return {
        "device": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "kernels": Path(explanation(device).splitlines()[0]).name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "load": round(os.getloadavg()[0], 2),
    }


HEAD = f"{'forward':>11}{'with backward':>15}{'peak':>11}{'moved':>12}\n{'ms':>11}{'ms':>15}{'MiB':>11}{'GB/s':>12}"


def tell(rows: list[dict[str, Any]]) -> None:
    """One case in one dtype, a line for each implementation."""
    for row in rows:
        numbers = (row["forward_ms"], row["forward_backward_ms"], row["peak_mib"], row["forward_gb_per_s"])
        print("{:11.3f}{:15.3f}{:11.1f}{:12.1f}  ".format(*numbers) + row["implementation"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="also float16, float64")
    parser.add_argument("--cases", default="", help="only those whose name has this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the results there")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    about = [where(device), *limits(device, arguments.rounds)]
    for line in about:
        print(", ".join(f"{key} {value}" for key, value in line.items() if value is not None))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        operators = implementations(device, Path(folder))
        ours = dict(list(operators.items())[:1])
        print(HEAD)
        for case in (case for case in [*CASES, *PLACED] if arguments.cases in case.name):
            for dtype in arguments.dtypes:
                print(f"{case.name}, {dtype}")
                taking_part = ours if case in PLACED else operators
                rows += (measured := measure(case, getattr(torch, dtype), taking_part, device, arguments.rounds))
                tell(measured)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text("[\n" + ",\n".join(json.dumps(row) for row in [*rows, *about]) + "\n]\n")


if __name__ == "__main__":
    main()
