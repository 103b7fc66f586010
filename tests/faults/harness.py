"""Faults, made to happen to a tiny training; then it is resumed to its end, which must be that of an undisturbed one.

`python -m tests.faults.harness --killed 50 --terminated 20 --worker 10 --full-disk 5 --rank 5` prints what came of it.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from dformer.d2.engine.hooks.writers import NOT_RESUMED
from dformer.utils.files import PARTIAL
from dformer.weights.checkpoint import read_checkpoint
from tests import ROOT
from tests.faults.training import STEPS, child, make_data

SAVES = STEPS // 2

# Processes are forked from one that has imported all: of the seconds of a start, none is left.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.faults.training"])


class Runs:
    """Trainings in folders of their own under `folder`, all on the same images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        make_data(self.data)

    def start(self, output: Path, workers: int, resume: bool = False) -> BaseProcess:
        """Start a training in a process of its own."""
        arguments = (str(log_of(output)), str(self.data), str(output), workers, resume)
        process = context.Process(target=child, args=arguments)
        process.start()
        return process

    def finish(self, output: Path, workers: int, resume: bool = False) -> None:
        """Train to the end."""
        process = self.start(output, workers, resume)
        process.join()
        assert process.exitcode == 0, log_of(output).read_text()[-3000:]

    def torchrun(self, output: Path, *options: str) -> "subprocess.Popen[bytes]":
        """Start a training in two processes under torchrun."""
        command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
        command += ["-m", "tests.faults.training", str(self.data), str(output), "0"]
        with log_of(output).open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=log, stderr=log)


def log_of(output: Path) -> Path:
    """What the processes of a training say."""
    return output.with_suffix(".log")


def difference(ours: Path, theirs: Path) -> str:
    """What two trainings differ in; "" where weights, their average, optimizer and logged numbers are equal."""
    a, b = (read_checkpoint(path / "model_final.pth") for path in (ours, theirs))
    for key in ("model", "model_ema"):
        if not all(torch.equal(a[key][name], tensor) for name, tensor in b[key].items()):
            return key
    states = [content["trainer"]["optimizer"]["state"] for content in (a, b)]
    if not all(torch.equal(states[0][i][name], x) for i, state in states[1].items() for name, x in state.items()):
        return "optimizer"
    return "" if logged(ours) == logged(theirs) else "metrics.json"


def logged(output: Path) -> list[dict[str, float]]:
    """The lines of metrics.json, but for times and memory."""
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in NOT_RESUMED} for line in lines]


def check_folder(output: Path) -> None:
    """All checkpoints under their name are whole, and no unreadable one was ever chosen."""
    for path in output.glob("*.pth"):
        read_checkpoint(path)
    said = log_of(output).read_text()
    assert "cannot be read" not in said, said[-3000:]


def killed(runs: Runs, random: random.Random, seconds: float, output: Path) -> str:
    """SIGKILL at a random moment of the run, or in a save."""
    process = runs.start(output, 0)
    if random.random() < 0.7:
        wait_for_save(output, process, random.randrange(1, SAVES))
    else:
        time.sleep(random.uniform(0, 0.8 * seconds))
    process.kill()
    process.join()
    check_folder(output)
    partial = list(output.glob(f"{PARTIAL}*"))
    runs.finish(output, 0, resume=True)
    assert not list(output.glob(f"{PARTIAL}*"))
    if process.exitcode == 0:
        return "too late"
    return "in a save" if partial else "between saves"


def terminated(runs: Runs, random: random.Random, seconds: float, output: Path) -> str:
    """SIGTERM at a random moment."""
    process = runs.start(output, 0)
    if random.random() < 0.7:
        wait_for_save(output, process, random.randrange(1, SAVES))
    time.sleep(random.uniform(0, 0.3 * seconds))
    process.terminate()
    process.join()
    check_folder(output)
    if process.exitcode == 75:  # what was done is saved
        stopped = re.findall(r"Stopped after iteration (\d+)", log_of(output).read_text())
        last = (output / "last_checkpoint").read_text()
        assert last in (f"model_{int(stopped[0]):07d}.pth", "model_final.pth")
    runs.finish(output, 0, resume=True)
    codes = {75: "exit code 75", -signal.SIGTERM: "before the first step", 0: "too late"}
    return codes[process.exitcode]


def worker_killed(runs: Runs, random: random.Random, seconds: float, output: Path) -> str:
    """SIGKILL to a loader worker."""
    process = runs.start(output, 2)
    assert process.pid
    wait_for_save(output, process, random.randrange(1, SAVES - 1))
    workers = children(process.pid)
    if workers:
        os.kill(random.choice(workers), signal.SIGKILL)
    process.join()
    check_folder(output)
    if process.exitcode != 0:
        assert "worker" in log_of(output).read_text()
    runs.finish(output, 2, resume=True)
    return "too late" if process.exitcode == 0 else f"exit code {process.exitcode}"


def disk_full(runs: Runs, random: random.Random, seconds: float, output: Path) -> str:
    """A file system of 16 MiB, which another fills up at a random moment."""
    disk = output.with_suffix(".disk")
    with mounted(disk, "16m"), (disk / "filler").open("wb", buffering=0) as filler:
        place = disk / "output"
        place.mkdir()
        output.symlink_to(place)
        process = runs.start(output, 0)
        wait_for_save(output, process, random.randrange(1, SAVES))
        while process.is_alive():  # what is freed, too
            with contextlib.suppress(OSError):
                filler.write(bytes(65536))
        process.join()
        said = log_of(output).read_text()
        assert process.exitcode == 2 and "cannot be written: No space left on device" in said, said[-3000:]
        filler.truncate(0)
        check_folder(output)
        runs.finish(output, 0, resume=True)
        output.unlink()
        shutil.copytree(place, output)
    return f"exit code {process.exitcode}"


def rank_killed(runs: Runs, random: random.Random, seconds: float, output: Path) -> str:
    """SIGKILL to one of two processes under torchrun, which starts both again by itself."""
    process = runs.torchrun(output, "--max-restarts", "3")
    wait_for_save(output, process, random.randrange(1, SAVES - 1))
    ranks = children(process.pid)
    if ranks:
        os.kill(random.choice(ranks), signal.SIGKILL)
    assert process.wait() == 0, log_of(output).read_text()[-3000:]
    check_folder(output)
    starts = re.findall(r"Starting training from iteration (\d+)", log_of(output).read_text())
    return f"went on from {starts[-1]}" if len(starts) > 1 else "too late"


FAULTS: dict[str, Callable[..., str]] = {
    "killed": killed,
    "terminated": terminated,
    "worker": worker_killed,
    "full-disk": disk_full,
    "rank": rank_killed,
}


def repeat(fault: str, count: int, folder: Path, seed: int = 0) -> Counter[str]:
    """Let a fault happen to trainings until it has hit `count` of them. Returns how often what came of it.

    Raises:
        AssertionError: a training did not end as the undisturbed one.
    """
    runs = Runs(folder)
    reference = folder / "undisturbed"
    seconds = 0.0
    if fault == "rank":
        assert runs.torchrun(reference).wait() == 0, log_of(reference).read_text()[-3000:]
    else:
        for output in (reference, folder / "once more"):  # the first start takes longer
            start = time.monotonic()
            runs.finish(output, 0)
            seconds = time.monotonic() - start
        assert not difference(folder / "once more", reference)
    draw = random.Random(seed)
    outcomes: Counter[str] = Counter()
    while sum(outcomes.values()) - outcomes["too late"] < count:
        number = sum(outcomes.values())
        output = folder / f"{fault}{number}"
        outcomes[FAULTS[fault](runs, draw, seconds, output)] += 1
        differs = difference(output, reference)
        assert not differs, f"{output} differs in its {differs} after {fault}: {logged(output)}"
        shutil.rmtree(output)
    return outcomes


def wait_for_save(output: Path, process: "BaseProcess | subprocess.Popen[bytes]", number: int) -> None:
    """Wait for the moment in which the `number`-th checkpoint is being written; or for the end."""
    seen: set[str] = set()
    while len(seen) < number and (process.is_alive() if isinstance(process, BaseProcess) else process.poll() is None):
        with contextlib.suppress(FileNotFoundError):
            names = [name for name in os.listdir(output) if name.startswith((".model_", "model_"))]
            seen |= {name.removeprefix(PARTIAL) for name in names}
        time.sleep(0.0005)


def children(process: int) -> list[int]:
    """Ids of the processes that it has started."""
    try:
        return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A file system of that size in memory.

    Raises:
        PermissionError: this user may not mount one.
    """
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mount.returncode:
        raise PermissionError(mount.stderr.decode())
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for fault in FAULTS:
        parser.add_argument(f"--{fault}", type=int, default=0, metavar="N", help=FAULTS[fault].__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    arguments = vars(parser.parse_args())
    seed = arguments.pop("seed")
    for fault, count in arguments.items():
        if count:
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                outcomes = repeat(fault.replace("_", "-"), count, Path(folder), seed)
            told = ", ".join(f"{what}: {n}" for what, n in outcomes.most_common())
            took = time.monotonic() - start
            print(f"{fault:10} {count:3} hit, all ended as the undisturbed one ({told}), {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
