#!/usr/bin/env python3
"""Time and memory of the demo, a frame: reading, the model, drawing, writing.

python benchmarks/demo.py --weights output/quickstart/model_final.pth --input folder video.mp4 [--json FILE]
python benchmarks/demo.py --config-file configs/coco/panoptic/dformer_r50_50ep.yaml --input folder

Each input (a folder, a file) is segmented in a fresh process, in one thread. Time is that of the processor. Without
--weights, those of the model are random, and all its queries are sure of something: there is more to draw than there
ever will be. Loading the model counts neither as time nor as memory. Memory is the most that the process has above what
it has with the model loaded, in each quarter of the frames.
"""

import argparse
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import measure
import torch
from detectron2.modeling import build_model
from tabulate import tabulate

from dformer.apps.demo import Settings, run, segment_files
from dformer.d2.checkpoint.zoo import inference_config
from dformer.d2.engine.predictor import Predictor
from dformer.utils.env import cpu_model
from dformer.utils.errors import UserError, exit_on_user_error


def random_weights(config_file: str, file: Path) -> None:
    """A checkpoint of a config's model, untrained, none of whose queries finds nothing."""
    cfg = inference_config(None, config_file, [])
    cfg.TEST.OBJECT_THRESHOLD = cfg.TEST.OVERLAP_THRESHOLD = 0.0
    torch.manual_seed(0)
    model = build_model(cfg)
    model.head.mask_decoder.class_embed.bias.data[-1] = -10
    torch.save({"model": model.state_dict(), "config": cfg.dump()}, file)


def measure_demo(weights: str, source: str, frames: int, batch: int) -> dict[str, Any]:
    """Seconds a frame, by part, and MiB, in each quarter of `frames`."""
    torch.set_num_threads(1)
    cfg = inference_config(weights, None, [])
    peaks: list[float] = []
    started: list[float] = []
    seen = 0
    build, record = Predictor.__init__, run.Demo.record

    def loaded(self: Predictor, *args: Any) -> None:
        build(self, *args)
        started.extend((time.process_time(), measure.resident()))
        measure.reset_peak()

    def recorded(self: run.Demo, *args: Any) -> None:
        nonlocal seen
        record(self, *args)
        seen += 1
        if seen * 4 // frames > (seen - 1) * 4 // frames:
            peaks.append(measure.peak() - started[1])
            measure.reset_peak()

    parts = {"model": (Predictor, "__call__"), "drawing": (run, "draw_segments")}
    with (
        tempfile.TemporaryDirectory() as output,
        mock.patch.object(Predictor, "__init__", loaded),
        mock.patch.object(run.Demo, "record", recorded),
        measure.timed_parts(parts, time.process_time) as seconds,
    ):
        problems = segment_files(cfg, [source], output, Settings(batch=batch))
        total = time.process_time() - started[0]
    if problems or seen != frames:
        raise UserError(f"{source}: {seen} of {frames} frames; {' '.join(problems)}")
    spent = {name: seconds[name] / frames for name in parts}
    rest = total / frames - sum(spent.values())
    return {"seconds": total / frames, **spent, "reading and writing": rest, "MiB": peaks}


def count_frames(source: str) -> int:
    """Images of a folder, frames of a video."""
    files, problems = run.find_inputs([source])
    if problems:
        raise UserError(problems[0])
    total = 0
    for file in files:
        if run.is_video(file):
            with run.VideoReader(file) as video:
                total += video.length or 0
        else:
            total += 1
    return total


@exit_on_user_error
def main() -> None:
    description, _, usage = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", metavar="FILE", help="checkpoint")
    parser.add_argument("--config-file", metavar="FILE", help="config of a model with random weights")
    parser.add_argument("--input", nargs="+", metavar="PATH", required=True, help="folders, images, videos")
    parser.add_argument("--batch", type=int, default=Settings.batch, help="frames of a video at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    args = parser.parse_args()
    if bool(args.weights) == bool(args.config_file):
        raise UserError("give either --weights or --config-file")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        weights = args.weights or str(Path(folder) / "random.pth")
        if args.config_file:
            random_weights(args.config_file, Path(weights))
        for source in args.input:
            frames = count_frames(source)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                measured = process.submit(measure_demo, weights, source, frames, args.batch).result()
            model = Path(args.weights or args.config_file).name
            rows.append({"weights": model, "input": Path(source).name, "frames": frames, **measured})
            print(
                tabulate([{**rows[-1], "MiB": " ".join(f"{m:.0f}" for m in rows[-1]["MiB"])}], "keys", floatfmt=".3f")
            )
    if args.json:
        content = {"cpu": cpu_model(), "torch": torch.__version__, "threads": 1, "rows": rows}
        measure.write(args.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
