"""Tasks of test_distributed.py: `torchrun ... -m tests.d2.engine.distributed <task> <folder> <processes>`."""

import io
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import Tensor, nn

from dformer.d2.data.loaders import share_records
from dformer.d2.engine.interruption import RESUME_ME
from dformer.d2.engine.launch import launch
from dformer.d2.engine.run import run
from dformer.d2.engine.trainer import MAX_BAD_STEPS, Trainer
from dformer.d2.evaluation.evaluate import evaluate
from dformer.losses import criterion
from dformer.utils import groups
from dformer.utils.errors import UserError
from tests.d2.engine.interrupt import damage, signalled
from tests.d2.tiny import tiny_batch, tiny_cfg
from tests.faults.training import configure

COUNTS = (1, 6, 0, 9)  # objects of the images of the joint batch; the model has 8 queries


class Loader(list):
    batch_sampler = SimpleNamespace(start=0)  # as of a real loader


def gradients(folder: Path, meta_architecture: str) -> tuple[dict[str, Tensor], float]:
    """Gradients and total loss of one step on the joint batch, which the processes share."""
    trainer = _trainer(folder, meta_architecture, [_share(tiny_batch(COUNTS))])
    trainer.optimizer.zero_grad = lambda: None
    trainer.train()
    gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    return gradients, trainer.storage.history("total_loss").latest()


FAULTS = ("image", "loss", "gradient", "cost")


def _cause(fault: str, model: nn.Module, batch: list[dict]) -> None:
    """Put NaN into an image, or into what the model computes in its first iteration."""

    def factor() -> float:
        return torch.nan if model.iteration == 1 else 1.0

    def spoil(owner: Any, name: str, change: Callable[[Any], Any]) -> None:
        function = getattr(owner, name)
        setattr(owner, name, lambda *args: change(function(*args)))

    match fault:
        case "image":
            batch[0]["image"] = torch.full((3, 64, 64), torch.nan)
        case "loss":
            spoil(model.criterion, "forward", lambda losses: losses | {"loss_dice_0": losses["loss_dice_0"] * factor()})
        case "gradient":
            model.head.mask_decoder.class_embed.weight.register_hook(lambda gradient: gradient * factor())
        case "cost":
            spoil(criterion, "matching_cost", lambda cost: cost * factor())


def bad_step(folder: Path, fault: str) -> tuple[list[list[bool]], str]:
    """For each process, which of two steps changed nothing, and the log of process 0.

    The last process has the fault in the first step.
    """
    bad, good = _share(tiny_batch(COUNTS)), _share(tiny_batch(COUNTS))
    trainer = _trainer(folder, "DFormer", [bad, good])
    if comm.get_rank() == comm.get_world_size() - 1:
        _cause(fault, trainer.model, bad)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    unchanged = []
    step = trainer.run_step

    def run_step() -> None:
        step()
        unchanged.append(all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True)))

    trainer.run_step = run_step
    handler = logging.StreamHandler(log := io.StringIO())
    logging.getLogger("dformer").addHandler(handler)
    trainer.train()
    logging.getLogger("dformer").removeHandler(handler)
    return comm.all_gather(unchanged), log.getvalue()


def stop(folder: Path) -> list[str]:
    """The error of each process when the last one has an image of NaNs at each step."""
    batches = [_share(tiny_batch(COUNTS)) for _ in range(MAX_BAD_STEPS + 1)]
    trainer = _trainer(folder, "DFormer", batches)
    if comm.get_rank() == comm.get_world_size() - 1:
        for batch in batches:
            _cause("image", trainer.model, batch)
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    return comm.all_gather(str(error.value))


def losses_without_objects(folder: Path) -> list[list[str]]:
    """Names of the losses in each process when only the last one has objects; a step would hang if they differed."""
    names: list[str] = []
    trainer = _trainer(folder, "DFormer", [_share(tiny_batch((0, 3, 0, 5)))])
    trainer.model.register_forward_hook(lambda model, inputs, losses: names.extend(losses) if model.training else None)
    trainer.train()
    return comm.all_gather(names)


def measure(folder: Path) -> None:
    """Save what the tests compare."""
    content = {name: gradients(folder, name) for name in ("DFormer", "Mask2Former")}
    content |= {fault: bad_step(folder, fault) for fault in FAULTS}
    content |= {"stop": stop(folder), "loss_names": losses_without_objects(folder), "once": once_a_node(folder)}
    content["first"] = first_weights(folder)
    assert comm.all_gather((comm.get_local_rank(), comm.get_local_size())) == [(0, 2), (1, 2)]
    if comm.is_main_process():
        torch.save(content, folder / "measured.pth")


def fail_of_user(folder: Path, error: type[Exception] = UserError) -> None:
    """The last process raises an error, for which the others would wait forever."""
    comm.synchronize()
    if comm.get_rank() == comm.get_world_size() - 1:
        raise error(f"one of {comm.get_local_size()} processes cannot read it")
    comm.synchronize()


def fail_of_ours(folder: Path) -> None:
    """The last process fails by a bug."""
    fail_of_user(folder, RuntimeError)


def fail_of_all(folder: Path) -> None:
    """All processes raise the same `UserError`."""
    comm.synchronize()
    raise UserError("all of them cannot read it")


class Slow(DatasetEvaluator):
    """Takes 4 seconds in the first process."""

    def evaluate(self):
        time.sleep(4 if comm.is_main_process() else 0)


def hang(folder: Path) -> None:
    """An evaluation takes longer than processes wait for each other in a step; then the last one finds no more data."""
    assert not torch.cuda._is_in_bad_fork()  # a process that --num-gpus has started could use a GPU
    trainer = _trainer(folder, "DFormer", [_share(tiny_batch(COUNTS))])
    trainer.cfg.DATASETS.TEST, trainer.patience = ("shapes_val",), timedelta(seconds=3)
    evaluators = {"build_test_loader": lambda cfg, name: [], "build_evaluators": lambda cfg, name, folder: Slow()}
    with patch.multiple("dformer.d2.evaluation.evaluate", **evaluators):
        evaluate(trainer.cfg, trainer.model)
    comm.synchronize()
    print(f"evaluated by {comm.get_rank()}", flush=True)
    if comm.get_rank() == comm.get_world_size() - 1:
        trainer.data_loader = _Hanging()
    trainer.train()


class _Hanging(Loader):
    def __iter__(self):
        signal.pause()


def once_a_node(folder: Path) -> dict[str, Any]:
    """What the first process of a node does for all: calls, values, errors, records."""
    calls: list[str] = []
    value = groups.once_a_node(lambda: calls.append("first") or {"classes": comm.get_rank()})

    def refuse() -> None:
        raise UserError(f"refused by {comm.get_rank()}")

    with pytest.raises(UserError) as error:
        groups.once_a_node(refuse)
    loaded: list[str] = []
    DatasetCatalog.register(
        "counted", lambda: loaded.append("records") or [{"file_name": f"{k}.jpg"} for k in range(9)]
    )
    records = [*share_records(("counted",), filter_empty=True)]
    return {
        "calls": groups.all_gather(calls),
        "values": groups.all_gather(value),
        "errors": groups.all_gather(str(error.value)),
        "loaded": groups.all_gather(loaded),
        "records": groups.all_gather(records),
        "gathered": groups.gather(comm.get_rank()),
        "cores": groups.all_gather(groups.share_of_cores()),
    }


def resume(folder: Path) -> None:
    """Train without and with interruptions: one process gets a signal, both stop; a checkpoint is damaged."""
    for output in ("whole", "pieces"):
        cfg = configure(str(folder / "data"), str(folder / output), workers=0)
        for stop in (None,) if output == "whole" else (4, 9, None):
            at = stop if comm.get_rank() == 1 else None
            with signalled(at), pytest.raises(SystemExit, match=str(RESUME_ME)) if stop else nullcontext():
                run(cfg, resume=True)
            if stop:
                tags = comm.all_gather((folder / output / "last_checkpoint").read_text())
                assert tags == [f"model_{stop:07d}.pth"] * 2
            if stop == 9 and comm.is_main_process():
                damage(folder / output / tags[0])
            comm.synchronize()


def first_weights(folder: Path) -> dict[str, Any]:
    """Of each process, how many weights the model was built with that are not 0, and all that it has before a step.

    The model has frozen parameters, and a random buffer, as many have.
    """
    drawn: list[int] = []

    def prepare(model: nn.Module) -> nn.Module:
        model.register_buffer("random", torch.randn(3))
        drawn.append(sum(int(parameter.count_nonzero()) for parameter in model.parameters()))
        return model

    trainer = _trainer(folder, "LDMSeg", [[]], ["MODEL.EMA_DECAY", "0.9"], prepare)
    assert not all(parameter.requires_grad for parameter in trainer.model.parameters())
    weights = dict(trainer.model.named_parameters()) | dict(trainer.model.named_buffers())
    tensors = {"model": {name: x.detach() for name, x in weights.items()}, "average": trainer.average.state_dict()}
    return {"drawn": groups.all_gather(drawn), "weights": groups.all_gather(tensors)}


def _trainer(
    folder: Path,
    meta_architecture: str,
    batches: list[list[dict]],
    opts: Sequence[str] = (),
    # In float32, rounding depends on the batch size and sometimes changes a point or a match.
    prepare: Callable[[nn.Module], nn.Module] = nn.Module.double,
) -> Trainer:
    cfg = tiny_cfg(meta_architecture, opts)
    cfg.OUTPUT_DIR = str(folder)
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.IMS_PER_BATCH = len(COUNTS)
    cfg.SOLVER.MAX_ITER = len(batches)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    torch.manual_seed(0)

    parts = {"build_train_loader": lambda cfg: Loader(batches), "build_model": lambda cfg: prepare(build_model(cfg))}
    with patch.multiple("dformer.d2.engine.trainer", **parts):
        trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer


def _share(batch: list[dict]) -> list[dict]:
    return batch[comm.get_rank() :: comm.get_world_size()]


if __name__ == "__main__":
    task, folder, processes = sys.argv[1:]
    from tests.d2.engine import distributed  # by the name under which the processes that are started here find it

    timeout = 0.05 if task == "hang" else 30.0
    launch(getattr(distributed, task), (Path(folder),), device="cpu", num_processes=int(processes), timeout=timeout)
    # One that outlives the interpreter aborts the process now and then.
    left = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in left), left
