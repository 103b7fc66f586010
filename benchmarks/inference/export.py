#!/usr/bin/env python3
"""Exported files beside PyTorch: how far apart, and how fast, on the CPU, in turns in one run.

python -m benchmarks.inference.export --json benchmarks/results/inference/export.json
python -m benchmarks.inference.export --systems DFormer --formats onnx --steps 1 --task panoptic

The models are those of configs/quick with random weights, none of them zero, at 128 x 128. A row is a system with a
number of sampling steps. For each format it has the difference to PyTorch (`dformer.apps.export.difference`) for other
inputs than the file was captured with, or why there is no file; and the time of a call, that of PyTorch, eager, beside
it.
"""

import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model

from benchmarks.measure import environment, medians, milliseconds, parser, report
from dformer.apps import export
from dformer.apps.export import FORMATS, Exported, Settings
from dformer.d2.config import get_cfg, merge_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "quick"
SYSTEMS = ("dformer", "mask2former", "diffusioninst", "pix2seqd", "ldmseg")
SIZE = (128, 128)


def prepare(system: str, steps: int, task: str | None) -> Exported:
    """Return a system with random weights, to be exported for that number of steps."""
    cfg = get_cfg()
    merge_config(cfg, str(CONFIGS / f"{system}_shapes.yaml"), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    request = replace(model.request, steps=steps, object_threshold=0.05, overlap_threshold=0.05)
    if task is not None:
        task = task if task in model.dense_tasks else model.dense_tasks[0]
    return Exported(model, Settings(request, task, SIZE))


def measure(exported: Exported, formats: list[str], rounds: int) -> dict[str, Any]:
    """Return differences and times of the formats of a model."""
    row: dict[str, Any] = {}
    program, given = export.capture(exported), exported.example(seed=1)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        expected = exported(*given.values())
        calls = {"eager": partial(exported, *given.values())}
        for name in formats:
            path = Path(folder, f"model.{name}.pt2")
            try:
                export.save(program, exported, path, name, {"outputs": list(expected)})
                function = export.load(path, name)
            except Exception as error:  # of any of the exporters: the cell says which
                row[name] = f"{type(error).__name__}: {error}".splitlines()[-1][:120]
                continue
            row[name] = export.difference(function(given), expected)
            calls[name] = partial(function, given)
            if name == "onnx":
                row["operators"] = " ".join(sorted(export.operators(path)))
        times = medians({name: partial(milliseconds, call) for name, call in calls.items()}, rounds)
    return row | {f"{name}_ms": round(time, 1) for name, time in times.items()}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    arguments.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    arguments.add_argument("--steps", nargs="+", type=int, default=[1, 4])
    arguments.add_argument("--task", help="with post-processing, for this task or the one that a system has")
    arguments.add_argument("--rounds", type=int, default=7)
    args = arguments.parse_args()
    rows = []
    for system in args.systems:
        for steps in args.steps if system != "mask2former" else [1]:
            print(f"{system}, {steps} steps", file=sys.stderr, flush=True)
            exported = prepare(system, steps, args.task)
            found = measure(exported, args.formats, args.rounds)
            rows.append({"system": system, "steps": steps, "task": exported.settings.task, **found})
            report(rows, environment("cpu") | {"size": f"{SIZE[0]}x{SIZE[1]}"}, args.json)


if __name__ == "__main__":
    main()
