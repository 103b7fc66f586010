#!/usr/bin/env python3
"""Time, memory and FLOPs of DFormer and Mask2Former beside Transformers' Mask2Former, in turns in one run.

python benchmarks/model.py
python benchmarks/model.py --models dformer --modes train --dtypes bfloat16 --sizes 1024x1024 --batches 2 --profile
python benchmarks/model.py --device cuda --suite gpu --json benchmarks/results/model_gpu.json
"""

import argparse
import multiprocessing
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from contenders import MODELS, OURS, TASKS, Case, Contender, prepare, transformers_missing
from measure import count_flops, in_turns, peak_memory, seconds_of, synchronize, timed_parts, write
from report import Result, describe, label, plot, records, report

from dformer.utils.errors import UserError, exit_on_user_error
from dformer.utils.memory import keep_pages

MODES = ("forward", "inference", "train")
DTYPES = ("float32", "bfloat16", "float16")
ALL_RESULTS = "all"

# Every combination of a grid's values is a case.
DEFAULTS: dict[str, list[Any]] = {
    "models": list(MODELS),
    "modes": list(MODES),
    "sizes": [(512, 512)],
    "batches": [1],
    "dtypes": ["float32"],
    "steps": [1, 4],
    "compile": ["eager"],
    "masks": [100],
    "mask_strides": [4],
    "results": [ALL_RESULTS],
    "objects": [10],
}
COCO, LARGE = [(800, 1333)], [(1024, 1024)]  # the sizes of COCO's inference and training
SUITES: dict[str, list[dict[str, list[Any]]]] = {
    "default": [{}],
    "cpu": [
        {"models": ["dformer"], "mask_strides": [1, 4]},
        {"modes": ["inference"], "steps": [1], "results": [ALL_RESULTS, *TASKS]},
        {"modes": ["forward", "inference"], "steps": [1], "sizes": COCO},
        {"modes": ["forward"], "batches": [2, 4], "steps": [1]},
        {"dtypes": ["bfloat16"]},
    ],
    "gpu": [
        {"modes": ["forward", "inference"], "sizes": COCO, "dtypes": list(DTYPES), "steps": [1, 2, 4, 8]},
        {"modes": ["train"], "sizes": LARGE, "batches": [4], "dtypes": ["bfloat16"]},
        {"modes": ["inference"], "sizes": COCO, "dtypes": ["bfloat16"], "steps": [1], "results": [ALL_RESULTS, *TASKS]},
        {
            "models": ["dformer", "transformers"],
            "modes": ["inference"],
            "sizes": COCO,
            "dtypes": ["bfloat16"],
            "compile": ["compiled"],
        },
        {"modes": ["forward"], "sizes": [(512, 512), *LARGE], "batches": [1, 2, 4], "dtypes": ["bfloat16"]},
        {"modes": ["forward"], "masks": [50, 200, 400], "dtypes": ["bfloat16"], "sizes": COCO, "steps": [1]},
    ],
    "growth": [
        {"steps": [1], "sizes": [(256, 256), (384, 384), (512, 512), (768, 768), (1024, 1024)]},
        {"steps": [1], "masks": [50, 100, 200, 400]},
        {"models": ["dformer"], "modes": ["forward", "inference"], "steps": [1, 2, 4, 8]},
    ],
}


def cases_of(grid: dict[str, list[Any]]) -> list[Case]:
    """All combinations of the values of a grid, without those that make no difference to a model."""
    cases = []
    for model, mode, size, batch, dtype, steps, compiled, masks, stride, result, objects in product(*grid.values()):
        noisy = model == "dformer"
        case = Case(
            model,
            mode,
            size,
            batch,
            dtype,
            steps if noisy and mode != "train" else 1,
            compiled == "compiled",
            masks,
            stride if noisy else 4,
            TASKS if result == ALL_RESULTS or mode != "inference" else (result,),
            objects if mode == "train" else 10,
        )
        cases.append(case)
    return cases


class Models:
    """A process a model: what one leaves behind in its memory is no other's concern."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.processes: dict[str, ProcessPoolExecutor] = {}

    def ask(self, question: Callable[..., Any], case: Case, *more: Any) -> Any:
        """The answer of the process of the case's model."""
        if case.model not in self.processes:
            self.processes[case.model] = new_process(case.model)
        return self.processes[case.model].submit(question, case, *more).result()

    def measure(self, cases: list[Case]) -> list[Result]:
        """Measure cases in turns with each other. One that fails is told on stderr and left out."""
        ready: dict[Case, tuple[float | None, float | None, int]] = {}
        for case in cases:
            print(f"preparing {label(case)}: {describe(case)}", file=sys.stderr)
            try:
                peak = None if self.args.no_peak else peak_of(case, self.args.device, tuple(self.args.opts))
                ready[case] = peak, *self.ask(get_ready, case, self.args.device, tuple(self.args.opts))
            except (RuntimeError, NotImplementedError, TypeError) as error:  # out of memory, no such kernel, ...
                print(f"left out, {label(case)}: {describe(case)}: {error}", file=sys.stderr)
        seconds = in_turns([partial(self.ask, time_once, case) for case in ready], self.args.rounds)
        results = []
        for (case, (peak, flops, parameters)), median in zip(ready.items(), seconds, strict=True):
            parts = self.ask(parts_of, case, self.args.rounds) if self.args.profile and not case.compiled else {}
            results.append(Result(case, 1e3 * median, peak, flops, parameters, parts))
        for process in self.processes.values():
            process.submit(READY.clear).result()
        return results


READY: dict[Case, Contender] = {}  # in the process of a model: what is being measured


def new_process(model: str) -> ProcessPoolExecutor:
    """One in which ours hold memory as our tools do; the peer is as it is."""
    set_up = keep_pages if model in OURS else None
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=set_up)


def get_ready(case: Case, device: str, overrides: tuple[str, ...]) -> tuple[float | None, int]:
    """Prepare a case and run it once. Returns its FLOPs and its model's number of parameters."""
    contender = prepare(case, device, overrides)
    flops = None if case.compiled else count_flops(contender.run)
    contender.run()
    READY[case] = contender
    return flops, contender.parameters


def time_once(case: Case) -> float:
    return seconds_of(READY[case].run)


def peak_of(case: Case, device: str, overrides: tuple[str, ...]) -> float:
    """In MiB, of a process of its own."""
    with new_process(case.model) as fresh:
        return fresh.submit(peak_in_this_process, case, device, overrides).result()


def peak_in_this_process(case: Case, device: str, overrides: tuple[str, ...]) -> float:
    return peak_memory(lambda: prepare(case, device, overrides).run, device)


def parts_of(case: Case, rounds: int) -> dict[str, float]:
    """Milliseconds that a call spends in each part and in all else; means over the calls."""
    contender = READY[case]
    with timed_parts(contender.parts) as seconds:
        start = time.perf_counter()
        for _ in range(rounds):
            contender.run()
        synchronize()
        total = time.perf_counter() - start
    spent = {name: 1e3 * seconds[name] / rounds for name in contender.parts if name in seconds}
    return {**spent, "other": 1e3 * total / rounds - sum(spent.values())}


def size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def parse_arguments() -> argparse.Namespace:
    description, _, usage = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=SUITES, default="default", help="which cases; the options below override it")
    grid = parser.add_argument_group("cases: all combinations")
    grid.add_argument("--models", nargs="+", choices=MODELS)
    grid.add_argument("--modes", nargs="+", choices=MODES)
    grid.add_argument("--sizes", nargs="+", type=size, metavar="HxW")
    grid.add_argument("--batches", nargs="+", type=int, metavar="B")
    grid.add_argument("--dtypes", nargs="+", choices=DTYPES)
    grid.add_argument("--steps", nargs="+", type=int, metavar="K", help="sampling steps")
    grid.add_argument("--compile", nargs="+", choices=("eager", "compiled"))
    grid.add_argument("--masks", nargs="+", type=int, metavar="N", help="queries")
    grid.add_argument("--mask-strides", nargs="+", type=int, metavar="S", help="image pixels a noise pixel")
    grid.add_argument("--results", nargs="+", choices=(ALL_RESULTS, *TASKS), help="of the post-processing")
    grid.add_argument("--objects", nargs="+", type=int, metavar="G", help="in a training image")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, help="calls of each case; default: 5, on a GPU 20")
    parser.add_argument("--no-peak", action="store_true", help="do not measure memory, which takes most of the time")
    parser.add_argument("--profile", action="store_true", help="also say where the time goes, by part; eager only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results there, tables beside it as .md")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="picture of cost against resolution, masks and steps")
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
    if transformers_missing():
        print("without Transformers: it is not installed (pip install -e '.[bench]')", file=sys.stderr)
        cases = dict.fromkeys(case for case in cases if case.model != "transformers")
    turns = defaultdict(list)
    for case in cases:
        turns[case.mode == "train", case.size, case.batch, case.dtype, case.masks].append(case)
    models = Models(args)
    results = [result for group in turns.values() for result in models.measure(group)]
    text = report(results, args.device)
    if args.json:
        write(args.json, records(results))
        write(args.json.with_suffix(".md"), text)
    if args.plot:
        plot(results, args.plot)
    print(text)
    sys.exit(0 if len(results) == len(cases) else 1)


if __name__ == "__main__":
    main()
