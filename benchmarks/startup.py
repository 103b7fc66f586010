#!/usr/bin/env python3
"""Start-up at COCO's size: processor time and memory up to the first training step, beside Detectron2's own start.

DETECTRON2_DATASETS=folder taskset -c 0 python benchmarks/startup.py [--processes 8] [--json FILE]

One core, since processes that run at once on several slow each other down, and so need more processor time. Each start
is a command of its own, with OMP_NUM_THREADS=1 on the CPU:

train: tools/train_net.py with the config, up to the end of the first step (all data checks included).
bare: the same imports, model, optimizer and group of processes, and a step on an image that is made; no data.
detectron2: build_detection_train_loader of Detectron2 on the same data set with a mapper that reads the image alone, up
to the first batch; no model, and no check. In one process only: each of several does all of it again.

Times are of all processes together, ended or not, loader workers included; memory is proportional (a page that n
processes share counts a n-th for each) when all have done their first step. OPTS makes model and images small where
these would dominate: start-up is what counts here.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from detectron2.data import build_detection_train_loader, detection_utils, get_detection_dataset_dicts
from detectron2.structures import Instances
from detectron2.utils import comm
from measure import environment, parser, report

from dformer.d2.config import get_cfg, merge_config
from dformer.d2.engine import trainer
from dformer.d2.engine.launch import launch
from dformer.d2.engine.run import run, set_up

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/coco/panoptic/dformer_r50_50ep.yaml"
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "SOLVER.IMS_PER_BATCH", "8", "INPUT.IMAGE_SIZE", "128"]
OPTS += ["MODEL.CRITERION.NUM_POINTS", "128"]
TICKS = os.sysconf("SC_CLK_TCK")


def started(ready: str) -> None:
    """Tell the benchmark that this process has started, and wait for its end."""
    Path(ready, str(os.getpid())).touch()
    signal.pause()


def started_after_step(ready: str) -> None:
    trainer.Trainer.after_step = lambda self: started(ready)


def train(cfg: Any, ready: str) -> None:
    """Train as tools/train_net.py does, up to the end of the first step."""
    started_after_step(ready)
    run(cfg)


def bare(cfg: Any, ready: str) -> None:
    """Train as `train` does, on images that are made here."""
    size, share = (cfg.INPUT.IMAGE_SIZE,) * 2, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    masks = torch.zeros(10, *size, dtype=torch.bool)
    masks[:, :40, :40] = True
    objects = Instances(size, gt_classes=torch.arange(10), gt_masks=masks)
    about = {"image_id": 0, "height": size[0], "width": size[1], "instances": objects}
    batch = [{"image": torch.zeros(3, *size, dtype=torch.uint8), **about} for _ in range(share)]

    class Loader(list):
        batch_sampler = SimpleNamespace(start=0)

    trainer.build_train_loader = lambda cfg: Loader([batch])
    started_after_step(ready)
    training = trainer.Trainer(set_up(cfg, write_config=False))
    training.resume_or_load(resume=False)
    training.train()


def detectron2(cfg: Any, ready: str) -> None:
    """Load the first batch of Detectron2's loader of the registered data set."""

    def read(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "image": torch.from_numpy(detection_utils.read_image(record["file_name"], "RGB").copy())}

    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN[0], filter_empty=False)
    loader = build_detection_train_loader(
        records,
        mapper=read,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,  # which wants sizes, and these records have none
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    del records
    batches = iter(loader)  # with its workers
    next(batches)
    started(ready)


STARTS = {function.__name__: function for function in (train, bare, detectron2)}


def child(start: str, processes: int, ready: str, config: str, opts: list[str]) -> None:
    """Start as `start` says, in so many processes or, under torchrun, in this one of its group."""
    cfg = get_cfg()
    merge_config(cfg, config, [*opts, "OUTPUT_DIR", str(Path(ready, "output"))])
    launch(STARTS[start], (cfg, ready), device="cpu", num_processes=processes)


def measure(start: str, processes: int, launcher: str, config: str, opts: list[str]) -> dict[str, Any]:
    """Return seconds and memory of a start."""
    with tempfile.TemporaryDirectory() as ready:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(torchrun if launcher == "torchrun" else []), __file__, "--child", start]
        command += ["--processes", "1" if launcher == "torchrun" else str(processes), "--ready", ready]
        command += ["--config-file", config, "--opts", *opts]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        begin = time.monotonic()
        with open(Path(ready, "log"), "w+") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            try:
                while sum(name.isdigit() for name in os.listdir(ready)) < processes:
                    if process.poll() is not None:
                        log.seek(0)
                        raise SystemExit(f"{' '.join(command)} failed:\n{log.read()[-3000:]}")
                    time.sleep(0.05)
                wall = time.monotonic() - begin
                time.sleep(1)  # loader workers fill their queues
                pids = tree(process.pid)
                row = {"start": start, "processes": processes, "launcher": launcher}
                row |= {"cpu_s": round(sum(map(cpu_seconds, pids)), 1), "wall_s": round(wall, 1)}
                return row | {"pss_gib": round(sum(map(proportional_memory, pids)) / 2**20, 2), "all": len(pids)}
            finally:
                for pid in tree(process.pid):  # torchrun gives each of its processes a session of its own
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait()


def tree(pid: int) -> list[int]:
    """Return a process and all that it has started, directly or not."""
    children: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [pid, *(other for child in children for other in tree(child))]


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11:15])) / TICKS  # utime, stime, cutime, cstime


def proportional_memory(pid: int) -> int:
    """Return the proportional set size of a process in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--processes", type=int, default=8, help="of the larger start")
    options.add_argument("--config-file", default=CONFIG)
    options.add_argument("--starts", nargs="+", choices=STARTS, default=[*STARTS])
    options.add_argument("--child", choices=STARTS, help="used by the script itself")
    options.add_argument("--ready", help="used by the script itself")
    options.add_argument("--opts", nargs="*", default=OPTS, metavar="KEY VALUE", help="config overrides")
    args = options.parse_args()
    if args.child:
        child(args.child, args.processes, args.ready, args.config_file, args.opts)
        return
    rows = []
    many = [(args.processes, "--num-gpus"), (args.processes, "torchrun")]
    for start in args.starts:
        for processes, launcher in [(1, "-"), *(many if start != "detectron2" else [])]:
            rows.append(measure(start, processes, launcher, args.config_file, args.opts))
            print(rows[-1], file=sys.stderr)
    report(rows, environment("cpu") | {"config": args.config_file, "opts": " ".join(args.opts)}, args.json)


if __name__ == "__main__":
    main()
