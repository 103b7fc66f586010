"""Faults in a tiny training, which is then resumed and must end as an undisturbed one."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

import torch

from dformer.d2.engine.hooks.writers import NOT_RESUMED
from dformer.utils.files import PARTIAL
from dformer.weights.checkpoint import read_checkpoint
from tests import ROOT
from tests.faults.training import STEPS, child, make_data

SAVES = STEPS // 2

# Processes are forked from one that has imported everything, which saves the seconds of a start.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.faults.training"])


def log_of(output: Path) -> Path:
    return output.with_suffix(".log")


def start(output: Path, workers: int, resume: bool = False) -> BaseProcess:
    """Start a training in a process, on the images beside its folder."""
    arguments = (str(log_of(output)), str(output.parent / "data"), str(output), workers, resume)
    process = context.Process(target=child, args=arguments)
    process.start()
    return process


def finish(output: Path, workers: int, resume: bool = False) -> None:
    """Train to the end."""
    process = start(output, workers, resume)
    process.join()
    assert process.exitcode == 0, log_of(output).read_text()[-3000:]


def torchrun(output: Path, *options: str) -> "subprocess.Popen[bytes]":
    """Start a training in two processes under torchrun."""
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    command += ["-m", "tests.faults.training", str(output.parent / "data"), str(output), "0"]
    with log_of(output).open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=log, stderr=log)


def difference(ours: Path, theirs: Path) -> str:
    """What two trainings differ in; "" if weights, their average, optimizer and logged numbers are equal."""
    a, b = (read_checkpoint(path / "model_final.pth") for path in (ours, theirs))
    parts = [("model", a["model"], b["model"]), ("model_ema", a["model_ema"], b["model_ema"])]
    states, others = (content["trainer"]["optimizer"]["state"] for content in (a, b))
    parts += [("optimizer", states[index], other) for index, other in others.items()]
    for key, x, y in parts:
        if not all(torch.equal(x[name], tensor) for name, tensor in y.items()):
            return key
    return "" if logged(ours) == logged(theirs) else "metrics.json"


def logged(output: Path) -> list[dict[str, float]]:
    """The lines of metrics.json, without times and memory."""
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in NOT_RESUMED} for line in lines]


def check_folder(output: Path) -> None:
    """Check that all checkpoints are intact, and that no unreadable one was ever chosen."""
    for path in output.glob("model_*.pth"):
        read_checkpoint(path)
    assert "cannot be read" not in log_of(output).read_text()


def killed(random: Random, seconds: float, output: Path) -> str:
    """SIGKILL at a random moment of the run, or in a save."""
    process = start(output, 0)
    if random.random() < 0.7:
        wait_for_save(output, process, random.randrange(1, SAVES))
    else:
        time.sleep(random.uniform(0, 0.8 * seconds))
    process.kill()
    process.join()
    check_folder(output)
    is_partial = any(output.glob(f"{PARTIAL}*"))
    finish(output, 0, resume=True)
    assert not list(output.glob(f"{PARTIAL}*"))
    return "too late" if process.exitcode == 0 else "in a save" if is_partial else "between saves"


def terminated(random: Random, seconds: float, output: Path) -> str:
    """SIGTERM at a random moment."""
    process = start(output, 0)
    if random.random() < 0.7:
        wait_for_save(output, process, random.randrange(1, SAVES))
    time.sleep(random.uniform(0, 0.3 * seconds))
    process.terminate()
    process.join()
    check_folder(output)
    if process.exitcode == 75:  # the last step is saved
        stopped = re.findall(r"Stopped after iteration (\d+)", log_of(output).read_text())
        assert (output / "last_checkpoint").read_text() in (f"model_{int(stopped[0]):07d}.pth", "model_final.pth")
    finish(output, 0, resume=True)
    return {75: "exit code 75", -signal.SIGTERM: "before the first step", 0: "too late"}[process.exitcode]


def worker_killed(random: Random, seconds: float, output: Path) -> str:
    """SIGKILL to a loader worker."""
    process = start(output, 2)
    assert process.pid
    wait_for_save(output, process, random.randrange(1, SAVES - 1))
    kill_child(process.pid, random)
    process.join()
    check_folder(output)
    assert process.exitcode == 0 or "worker" in log_of(output).read_text()
    finish(output, 2, resume=True)
    return "too late" if process.exitcode == 0 else f"exit code {process.exitcode}"


def rank_killed(random: Random, seconds: float, output: Path) -> str:
    """SIGKILL to one of two processes under torchrun, which restarts both."""
    process = torchrun(output, "--max-restarts", "3")
    wait_for_save(output, process, random.randrange(1, SAVES - 1))
    kill_child(process.pid, random)
    assert process.wait() == 0, log_of(output).read_text()[-3000:]
    check_folder(output)
    starts = re.findall(r"Starting training from iteration (\d+)", log_of(output).read_text())
    return f"resumed from {starts[-1]}" if len(starts) > 1 else "too late"


def repeat(fault: Callable[..., str], count: int, folder: Path, seed: int = 0) -> Counter[str]:
    """Run `fault` until it has hit `count` trainings, compare each with an undisturbed one, and count the outcomes."""
    make_data(folder / "data")
    reference = folder / "undisturbed"
    seconds = 0.0
    if fault is rank_killed:
        assert torchrun(reference).wait() == 0, log_of(reference).read_text()[-3000:]
    else:
        for output in (folder / "first", reference):  # the first start takes longer
            begin = time.monotonic()
            finish(output, 0)
            seconds = time.monotonic() - begin
    random = Random(seed)
    outcomes: Counter[str] = Counter()
    while outcomes.total() - outcomes["too late"] < count:
        output = folder / f"run{outcomes.total()}"
        outcomes[fault(random, seconds, output)] += 1
        assert difference(output, reference) == "", f"{output} after {outcomes}: {logged(output)}"
        shutil.rmtree(output)
    return outcomes


def wait_for_save(output: Path, process: "BaseProcess | subprocess.Popen[bytes]", number: int) -> None:
    """Wait until the `number`-th checkpoint is being written, or for the end."""
    names: set[str] = set()
    while len(names) < number and (process.is_alive() if isinstance(process, BaseProcess) else process.poll() is None):
        with suppress(FileNotFoundError):
            files = [name.removeprefix(PARTIAL) for name in os.listdir(output)]
            names |= {name for name in files if name.startswith("model_")}
        time.sleep(0.0005)


def kill_child(process: int, random: Random) -> None:
    with suppress(FileNotFoundError):
        if children := Path(f"/proc/{process}/task/{process}/children").read_text().split():
            os.kill(int(random.choice(children)), signal.SIGKILL)
