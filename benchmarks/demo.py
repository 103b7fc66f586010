#!/usr/bin/env python3
"""Time and memory of the demo for each frame: reading, the model, drawing, writing.

python benchmarks/demo.py --weights output/quickstart/model_final.pth --input folder video.mp4 [--json FILE]

Each input (a folder, a file) is segmented in a fresh process, in one thread. Time is the processor's. Loading the model
counts neither as time nor as memory. Memory is the peak above what the process has with the model loaded, in each
quarter of the frames.
"""

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measure import environment, parser, report, reset_peak, resident, timed_parts

from dformer.apps.demo import Settings, run, segment_files
from dformer.d2.checkpoint.zoo import inference_config
from dformer.d2.engine.predictor import Predictor
from dformer.d2.engine.result import Result
from dformer.utils.errors import UserError, exit_on_user_error


def measure_demo(weights: str, source: str, batch: int) -> dict[str, Any]:
    """Return seconds for each frame, by part, and MiB in each quarter of the frames."""
    torch.set_num_threads(1)
    cfg = inference_config(weights, None, [])
    loaded: list[float] = []  # MiB
    peaks: list[float] = []  # of each frame
    load, record = Predictor.__init__, run.Demo.record

    def after_loading(self: Predictor, *args: Any) -> None:
        load(self, *args)
        loaded.append(resident())
        reset_peak()

    def after_frame(self: run.Demo, *args: Any) -> None:
        record(self, *args)
        peaks.append(resident("VmHWM") - loaded[0])
        reset_peak()

    parts = {"loading": (Predictor, "__init__"), "model": (Predictor, "predict"), "drawing": (Result, "draw")}
    parts["model and tracks of videos"] = (Predictor, "track")
    with (
        tempfile.TemporaryDirectory() as output,
        mock.patch.object(Predictor, "__init__", after_loading),
        mock.patch.object(run.Demo, "record", after_frame),
        timed_parts(parts, time.process_time) as seconds,
    ):
        if problems := segment_files(cfg, [source], output, Settings(batch=batch)):
            raise UserError(" ".join(problems))
    frames = len(peaks)
    seconds.pop("loading")
    seconds["reading and writing"] = seconds.pop("other")
    quarters = [peaks[k * frames // 4 : (k + 1) * frames // 4] for k in range(4)]
    return {
        "frames": frames,
        "seconds": sum(seconds.values()) / frames,
        **{part: value / frames for part, value in seconds.items()},
        "MiB": [round(max(quarter), 1) for quarter in quarters if quarter],
    }


@exit_on_user_error
def main() -> None:
    options = parser(__doc__)
    options.add_argument("--weights", metavar="FILE", required=True, help="checkpoint")
    options.add_argument("--input", nargs="+", metavar="PATH", required=True, help="folders, images, videos")
    options.add_argument("--batch", type=int, default=Settings.batch, help="frames of a video at once")
    args = options.parse_args()
    rows = []
    for source in args.input:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            measured = process.submit(measure_demo, args.weights, source, args.batch).result()
        rows.append({"weights": Path(args.weights).name, "input": Path(source).name, **measured})
    report(rows, environment("cpu") | {"threads": 1}, args.json)


if __name__ == "__main__":
    main()
