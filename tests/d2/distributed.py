"""What the processes of test_distributed.py do: `torchrun ... -m tests.d2.distributed <task> <folder> <processes>`."""

import sys
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import Tensor

from dformer.d2 import trainer
from dformer.d2.interruption import RESUME_ME
from dformer.d2.launch import launch
from dformer.errors import UserError
from tests.d2.interrupt import damage, signalled
from tests.d2.tiny import tiny_batch, tiny_cfg
from tests.faults.training import configure

COUNTS = (1, 6, 0, 9)  # objects of the images of the joint batch; the model has 8 queries


class Loader(list):
    """Batches; a real loader has a `start`, too."""


def gradients(folder: Path, meta_architecture: str) -> tuple[dict[str, Tensor], float]:
    """Gradients and total loss of one step on the joint batch, of which each process has a part."""
    line = _trainer(folder, meta_architecture, [_share(tiny_batch(COUNTS))])
    line.optimizer.zero_grad = lambda: None
    line.train()
    gradients = {name: parameter.grad for name, parameter in line.model.named_parameters()}
    return gradients, line.storage.history("total_loss").latest()


def steps_left_out(folder: Path) -> list[list[bool]]:
    """Of each process, which of two steps changed nothing; in the first the last process has an image of NaNs."""
    bad, good = _share(tiny_batch(COUNTS)), _share(tiny_batch(COUNTS))
    if comm.get_rank() == comm.get_world_size() - 1:
        bad[0]["image"] = torch.full((3, 64, 64), torch.nan)
    line = _trainer(folder, "DFormer", [bad, good])
    before = [parameter.detach().clone() for parameter in line.model.parameters()]
    unchanged = []
    step = line.run_step

    def run_step() -> None:
        step()
        unchanged.append(all(torch.equal(a, b) for a, b in zip(before, line.model.parameters(), strict=True)))

    line.run_step = run_step
    line.train()
    return comm.all_gather(unchanged)


def measure(folder: Path) -> None:
    """Save what the tests compare."""
    content = {name: gradients(folder, name) for name in ("DFormer", "Mask2Former")}
    content |= {"left_out": steps_left_out(folder)}
    content |= {"local": comm.all_gather((comm.get_local_rank(), comm.get_local_size()))}
    if comm.is_main_process():
        torch.save(content, folder / "measured.pth")


def fail_of_user(folder: Path) -> None:
    """The last process fails for a reason that the user can mend; the others would wait for it for ever."""
    _fail(UserError(f"one of {comm.get_local_size()} processes cannot read it"))


def fail_of_all(folder: Path) -> None:
    """All processes meet the same."""
    comm.synchronize()
    raise UserError("all of them cannot read it")


def hang(folder: Path) -> None:
    """The last process does not come to a collective."""
    if comm.get_rank() == comm.get_world_size() - 1:
        time.sleep(600)
    comm.synchronize()


def resume(folder: Path) -> None:
    """Train in one go, and in pieces: one process gets a signal, both stop; then the last checkpoint is damaged."""
    for output in ("whole", "pieces"):
        cfg = configure(str(folder / "data"), str(folder / output), workers=0)
        for stop in (None,) if output == "whole" else (4, 9, None):
            at = stop if comm.get_rank() == 1 else None
            with signalled(at), pytest.raises(SystemExit, match=str(RESUME_ME)) if stop else nullcontext():
                trainer.run(cfg, resume=True)
            if stop:
                tags = comm.all_gather((folder / output / "last_checkpoint").read_text())
                assert tags == [f"model_{stop:07d}.pth"] * 2
            if stop == 9 and comm.is_main_process():
                damage(folder / output / tags[0])
            comm.synchronize()


def fail_of_ours(folder: Path) -> None:
    """The last process fails by a mistake in the code."""
    _fail(RuntimeError(f"one of {comm.get_local_size()} processes has a bug"))


def _fail(error: Exception) -> None:
    comm.synchronize()
    if comm.get_rank() == comm.get_world_size() - 1:
        raise error
    comm.synchronize()


def _trainer(folder: Path, meta_architecture: str, batches: list[list[dict]]) -> trainer.Trainer:
    cfg = tiny_cfg(meta_architecture)
    cfg.OUTPUT_DIR = str(folder)
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.IMS_PER_BATCH = len(COUNTS)
    cfg.SOLVER.MAX_ITER = len(batches)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    torch.manual_seed(0)

    # In single precision, rounding that differs with the batch's size now and then moves a point or a match.
    parts = {"build_train_loader": lambda cfg: Loader(batches), "build_model": lambda cfg: build_model(cfg).double()}
    with patch.multiple(trainer, **parts):
        line = trainer.Trainer(cfg)
    line.resume_or_load(resume=False)
    return line


def _share(batch: list[dict]) -> list[dict]:
    return batch[comm.get_rank() :: comm.get_world_size()]


if __name__ == "__main__":
    task, folder, processes = sys.argv[1:]
    from tests.d2 import distributed  # by the name under which the processes that are started here find it

    timeout = 0.05 if task == "hang" else 30.0
    launch(getattr(distributed, task), (Path(folder),), device="cpu", num_processes=int(processes), timeout=timeout)
    # One that outlives the interpreter aborts the process now and then.
    left = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in left), left
