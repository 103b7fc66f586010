#!/usr/bin/env python3
"""Time, memory and FLOPs of DFormer and Mask2Former beside Transformers' Mask2Former, in turns in one run.

python benchmarks/model.py
python benchmarks/model.py --models dformer --modes train --dtypes bfloat16 --sizes 1024x1024 --batches 2 --profile
python benchmarks/model.py --device cuda --suite gpu --json benchmarks/results/model_gpu.json
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from contenders import MODELS, TASKS, Case, Contender, forget_models, prepare, transformers_missing
from measure import count_flops, in_turns, peak_memory, timed_parts
from tabulate import tabulate

from dformer import ops
from dformer.env import cpu_model
from dformer.errors import UserError, exit_on_user_error

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
        {},
        {"models": ["dformer"], "mask_strides": [1, 4]},
        {"modes": ["inference"], "steps": [1], "results": [ALL_RESULTS, *TASKS]},
        {"modes": ["forward", "inference"], "steps": [1], "sizes": [*COCO, *LARGE]},
        {"modes": ["forward"], "batches": [2, 4], "steps": [1]},
        {"dtypes": ["bfloat16"]},
    ],
    "gpu": [
        {"modes": ["forward", "inference"], "sizes": COCO, "dtypes": list(DTYPES), "steps": [1, 2, 4, 8]},
        {"modes": ["train"], "sizes": LARGE, "batches": [4], "dtypes": ["bfloat16"]},
        {"modes": ["inference"], "sizes": COCO, "dtypes": ["bfloat16"], "steps": [1], "results": [ALL_RESULTS, *TASKS]},
        {
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


class Result(NamedTuple):
    """What was measured of a case; None: was not."""

    case: Case
    milliseconds: float  # median of a call
    peak_mib: float | None
    flops: int | None
    parameters: int
    parts: dict[str, float]  # milliseconds


def label(case: Case) -> str:
    """The model, and what is unusual about it."""
    usual = Case(case.model, *case[1:7], masks=100, mask_stride=4, tasks=TASKS, objects=10)
    unusual = [
        f"{key}={','.join(value) if isinstance(value, tuple) else value}"
        for key, value in case._asdict().items()
        if value != getattr(usual, key)
    ]
    return " ".join([case.model, *unusual])


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


def measure(cases: list[Case], args: argparse.Namespace) -> list[Result]:
    """Measure cases in turns with each other. One that fails is told on stderr and left out."""
    overrides = tuple(args.opts)
    peaks: list[float | None] = []
    contenders: list[Contender] = []
    flops: list[int | None] = []
    able: list[Case] = []
    for case in cases:
        print(f"preparing {label(case)}, {case.mode}", file=sys.stderr)
        try:
            peak = None if args.no_peak else peak_of(case, args.device, overrides)
            contender = prepare(case, args.device, overrides)
            if case.compiled:
                contender.run()
            flops.append(None if case.compiled else count_flops(contender.run))
            contender.run()
        except (RuntimeError, NotImplementedError, TypeError) as error:  # out of memory, no such kernel, ...
            print(f"left out, {label(case)}, {describe(case)}: {error}", file=sys.stderr)
            continue
        able.append(case)
        peaks.append(peak)
        contenders.append(contender)
    seconds = in_turns([contender.run for contender in contenders], args.rounds)
    parts = [parts_of(contender, args.rounds) if args.profile else {} for contender in contenders]
    return [
        Result(case, 1e3 * s, peak, flop, contender.parameters, part)
        for case, s, peak, flop, contender, part in zip(able, seconds, peaks, flops, contenders, parts, strict=True)
    ]


def peak_of(case: Case, device: str, overrides: tuple[str, ...]) -> float:
    if device == "cuda":
        return peak_memory(lambda: prepare(case, device, overrides).run, device)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(peak_in_this_process, case, device, overrides).result()


def peak_in_this_process(case: Case, device: str, overrides: tuple[str, ...]) -> float:
    return peak_memory(lambda: prepare(case, device, overrides).run, device)


def parts_of(contender: Contender, rounds: int) -> dict[str, float]:
    """Milliseconds that a call spends in each part and in all else; means over the calls."""
    with timed_parts(contender.parts) as seconds:
        (total,) = in_turns([contender.run], rounds)
    spent = {name: 1e3 * seconds[name] / rounds for name in contender.parts if name in seconds}
    return {**spent, "other": max(1e3 * total - sum(spent.values()), 0.0)}


def describe(case: Case) -> str:
    height, width = case.size
    compiled = ", compiled" if case.compiled else ""
    return f"{case.mode}, {height}x{width}, batch {case.batch}, {case.dtype}, {case.steps} steps{compiled}"


def peer(case: Case, results: list[Result]) -> float | None:
    """Milliseconds of Transformers' model on the same input, in eager mode; of inference, without post-processing."""
    mode = "train" if case.mode == "train" else "forward"
    wanted = case._replace(
        model="transformers", mode=mode, steps=1, compiled=False, mask_stride=4, tasks=TASKS, objects=case.objects
    )
    return next((result.milliseconds for result in results if result.case == wanted), None)


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(results: list[Result]) -> str:
    """All results, as a Markdown table."""
    rows = []
    for case, milliseconds, peak, flops, parameters, _ in results:
        reference = peer(case, results)
        rows.append(
            {
                "model": label(case),
                "mode": case.mode,
                "size": "x".join(map(str, case.size)),
                "batch": case.batch,
                "dtype": case.dtype,
                "steps": case.steps,
                "compiled": "yes" if case.compiled else "no",
                "ms": number(milliseconds),
                "images/s": number(1e3 * case.batch / milliseconds),
                "x peer": "" if reference is None else f"{milliseconds / reference:.2f}",
                "peak MiB": "" if peak is None else f"{peak:.0f}",
                "GFLOP": "" if flops is None else f"{flops / 1e9:.0f}",
                "M param.": f"{parameters / 1e6:.1f}",
            }
        )
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


def parts_table(results: list[Result]) -> str:
    """Milliseconds by part, as a Markdown table."""
    names = dict.fromkeys(name for result in results for name in result.parts)
    names = [*(name for name in names if name != "other"), "other"]
    rows = [
        {"model": label(r.case), "case": describe(r.case)}
        | {name: number(r.parts[name]) if name in r.parts else "" for name in names}
        for r in results
    ]
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


def record(result: Result) -> dict[str, Any]:
    case = result.case
    return {
        "model": label(case),
        "mode": case.mode,
        "size": "x".join(map(str, case.size)),
        "batch": case.batch,
        "dtype": case.dtype,
        "steps": case.steps,
        "compiled": case.compiled,
        "median_ms": round(result.milliseconds, 3),
        "peak_mib": None if result.peak_mib is None else round(result.peak_mib, 1),
    }


def environment(device: str) -> str:
    """What it ran on, in a line."""
    where = torch.cuda.get_device_name() if device == "cuda" else f"{cpu_model()}, {torch.get_num_threads()} threads"
    peer_version = "" if transformers_missing() else f", Transformers {version('transformers')}"
    return f"{where}; PyTorch {torch.__version__}{peer_version}; dformer's operator: {ops.implementation()}"


def write(path: Path, text: str) -> None:
    """All of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


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
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, help="calls of each case; default: 5, on a GPU 20")
    parser.add_argument("--no-peak", action="store_true", help="do not measure memory, which takes most of the time")
    parser.add_argument("--profile", action="store_true", help="also say where the time goes, by part")
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
    results = []
    for group in turns.values():
        results += measure(group, args)
        forget_models()
    report = f"{environment(args.device)}\n\n{table(results)}\n"
    if args.profile:
        report += f"\nMilliseconds by part:\n\n{parts_table(results)}\n"
    print(report)
    if args.json:
        write(args.json, json.dumps([record(result) for result in results], indent=1) + "\n")
        write(args.json.with_suffix(".md"), report)
    sys.exit(0 if len(results) == len(cases) else 1)


if __name__ == "__main__":
    main()
