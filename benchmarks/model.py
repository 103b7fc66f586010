#!/usr/bin/env python3
"""Time, memory and FLOPs of DFormer and Mask2Former beside Transformers' Mask2Former, in turns in one run.

python benchmarks/model.py
python benchmarks/model.py --models dformer --modes train --dtypes bfloat16 --sizes 1024x1024 --batches 2 --profile
python benchmarks/model.py --device cuda --suite gpu --json benchmarks/results/model_gpu.json
"""

import argparse
import multiprocessing
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import measure
import torch
from systems import OURS, Case, System, prepare

from dformer.postprocess import TASKS
from dformer.utils.errors import UserError, exit_on_user_error
from dformer.utils.memory import keep_pages

PEER = "transformers"
CHOICES = {
    "models": (*OURS, PEER),
    "modes": ("forward", "inference", "train"),
    "dtypes": ("float32", "bfloat16", "float16"),
    "compile": ("eager", "compiled"),
    "results": ("all", *TASKS),
}
# Every combination of a grid's values is a case.
DEFAULTS: dict[str, list[Any]] = {
    "models": [*OURS, PEER],
    "modes": ["forward", "inference", "train"],
    "sizes": ["512x512"],
    "batches": [1],
    "dtypes": ["float32"],
    "steps": [1, 4],
    "compile": ["eager"],
    "masks": [100],
    "mask_strides": [4],
    "results": ["all"],
}
COCO, LARGE = ["800x1333"], ["1024x1024"]  # the sizes of COCO's inference and training
BF16 = ["bfloat16"]
SUITES: dict[str, list[dict[str, list[Any]]]] = {
    "default": [{}],
    "cpu": [
        {"models": ["dformer"], "mask_strides": [1, 4]},
        {"modes": ["inference"], "steps": [1], "results": ["all", *TASKS]},
        {"modes": ["forward", "inference"], "steps": [1], "sizes": COCO},
        {"modes": ["forward"], "batches": [2, 4], "steps": [1]},
        {"dtypes": BF16},
    ],
    "gpu": [
        {"modes": ["forward", "inference"], "sizes": COCO, "dtypes": [*CHOICES["dtypes"]], "steps": [1, 2, 4, 8]},
        {"modes": ["train"], "sizes": LARGE, "batches": [4], "dtypes": BF16},
        {"modes": ["inference"], "sizes": COCO, "dtypes": BF16, "steps": [1], "results": ["all", *TASKS]},
        {"models": ["dformer", PEER], "modes": ["inference"], "sizes": COCO, "dtypes": BF16, "compile": ["compiled"]},
        {"modes": ["forward"], "sizes": ["512x512", *LARGE], "batches": [1, 2, 4], "dtypes": BF16},
        {"modes": ["forward"], "masks": [50, 200, 400], "dtypes": BF16, "sizes": COCO, "steps": [1]},
    ],
    "growth": [
        {"steps": [1], "sizes": ["256x256", "384x384", "512x512", "768x768", "1024x1024"]},
        {"steps": [1], "masks": [50, 100, 200, 400]},
        {"models": ["dformer"], "modes": ["forward", "inference"], "steps": [1, 2, 4, 8]},
    ],
}
LEGEND = (
    "x_peer: over the time of Transformers' Mask2Former on the same input in the same turns, eager, without its "
    "post-processing; peak_mib: above the built model; gflop: of matrix products, convolutions and attention"
)


def cases_of(grid: dict[str, list[Any]]) -> list[Case]:
    """Return all combinations of a grid's values, without those that make no difference to a model."""
    cases = []
    for model, mode, size, batch, dtype, steps, compiled, masks, stride, results in product(*grid.values()):
        steps = steps if model == "dformer" and mode != "train" else 1
        stride = stride if model == "dformer" else 4
        results = results if mode == "inference" else "all"
        cases.append(Case(model, mode, size, batch, dtype, steps, compiled == "compiled", masks, stride, results))
    return cases


READY: dict[Case, System] = {}  # in the process of a model: what is being measured


def new_process(model: str) -> ProcessPoolExecutor:
    """Return a process that holds memory as our tools do for our models, and as it is for the peer."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), keep_pages if model in OURS else None)


def get_ready(case: Case, device: str, overrides: list[str]) -> dict[str, Any]:
    """Prepare a case and run it once. Return its FLOPs and its model's parameters."""
    system = READY[case] = prepare(case, device, overrides)
    flops = None if case.compiled else round(measure.count_flops(system.run) / 1e9, 3)
    system.run()
    return {"gflop": flops, "million_parameters": round(system.parameters / 1e6, 1)}


def time_once(case: Case) -> float:
    """Return the milliseconds of a call."""
    return measure.milliseconds(READY[case].run)


def peak_of(case: Case, device: str, overrides: list[str]) -> float:
    """Return the MiB that two calls hold at most, in a process of their own."""
    return measure.peak_memory(prepare(case, device, overrides).run, device)


def parts_of(case: Case, rounds: int) -> dict[str, float]:
    """Return the milliseconds that a call spends in each part and elsewhere, means over the calls."""
    with measure.timed_parts(READY[case].parts) as seconds:
        for _ in range(rounds):
            READY[case].run()
    return {f"{name}_ms": round(1e3 * value / rounds, 2) for name, value in seconds.items() if value}


def measure_in_turns(cases: list[Case], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure cases and return their rows. A case that fails is reported on stderr and left out.

    Each model has a process of its own, so that it does not depend on what others leave in memory.
    """
    processes = {model: new_process(model) for model in {case.model for case in cases}}

    def ask(function: Callable[..., Any], case: Case, *arguments: Any) -> Any:
        return processes[case.model].submit(function, case, *arguments).result()

    rows: dict[Case, dict[str, Any]] = {}
    for case in cases:
        print(f"preparing {case}", file=sys.stderr)
        try:
            peak = None
            if not args.no_peak:
                with new_process(case.model) as fresh:
                    peak = round(fresh.submit(peak_of, case, args.device, args.opts).result(), 1)
            rows[case] = {"peak_mib": peak, **ask(get_ready, case, args.device, args.opts)}
        except (RuntimeError, TypeError) as error:
            # Not enough memory or no kernel for the type, or NumPy lacks it (a TypeError). It is named, and the other
            # cases are measured all the same.
            print(f"left out {case}: {error}", file=sys.stderr)
    times = measure.medians({case: partial(ask, time_once, case) for case in rows}, args.rounds)
    for case, row in rows.items():
        peer = case._replace(model=PEER, steps=1, compiled=False, mask_stride=4, results="all")
        base = times.get(peer if case.mode == "train" else peer._replace(mode="forward"))
        row["x_peer"] = None if base is None else round(times[case] / base, 2)
        if args.profile and not case.compiled:
            row |= ask(parts_of, case, args.rounds)
    for process in processes.values():
        process.shutdown()
    return [case._asdict() | {"median_ms": round(times[case], 3), **row} for case, row in rows.items()]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = measure.parser(__doc__)
    parser.add_argument("--suite", choices=SUITES, default="default", help="which cases; the options below override it")
    grid = parser.add_argument_group("cases: all combinations")
    for name, values in DEFAULTS.items():
        option, kind = f"--{name.replace('_', '-')}", type(values[0])
        grid.add_argument(option, nargs="+", type=kind, choices=CHOICES.get(name), help=f"default: {values}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, help="calls of each case; default: 5, on a GPU 20")
    parser.add_argument("--no-peak", action="store_true", help="do not measure memory, which takes most of the time")
    parser.add_argument("--profile", action="store_true", help="also measure the time by part; eager only")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    args = parse_arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU")
    args.rounds = args.rounds or (20 if args.device == "cuda" else 5)
    given = {key: getattr(args, key) for key in DEFAULTS if getattr(args, key)}
    cases = dict.fromkeys(case for grid in SUITES[args.suite] for case in cases_of({**DEFAULTS, **grid, **given}))
    if find_spec(PEER) is None:
        print("without Transformers: it is not installed (pip install -e '.[bench]')", file=sys.stderr)
        cases = dict.fromkeys(case for case in cases if case.model != PEER)
    turns = defaultdict(list)
    for case in cases:
        turns[case.mode == "train", case.size, case.batch, case.dtype, case.masks].append(case)
    rows = [row for group in turns.values() for row in measure_in_turns(group, args)]
    measure.report(rows, measure.environment(args.device) | {"columns": LEGEND}, args.json)
    sys.exit(0 if len(rows) == len(cases) else 1)


if __name__ == "__main__":
    main()
