"""One process or many, on CPUs or GPUs: the same function runs in each."""

import gc
import os
import socket
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from torch.distributed.elastic.multiprocessing.errors import record

from dformer.errors import UserError, exit_on_user_error


def resolve_device(device: str, is_explicit: bool, num_gpus: int) -> str:
    """What to run on: `device`, or "cpu" where that is a GPU, there is none and nobody insists.

    Args:
        device: MODEL.DEVICE, "cpu" or "cuda".
        is_explicit: the user asked for this device on the command line.
        num_gpus: `--num-gpus`; 0 asks for the CPU.

    Raises:
        UserError: there is no GPU, and the user asked for one.
    """
    if num_gpus == 0:
        return "cpu"
    if torch.device(device).type != "cuda" or torch.cuda.is_available():
        return device
    if is_explicit or num_gpus > 1:
        asked = f"--num-gpus {num_gpus}" if num_gpus > 1 else f"MODEL.DEVICE {device}"
        raise UserError(f"{asked}, but torch {torch.__version__} finds no GPU here; without it this runs on the CPU")
    return "cpu"


def launch(
    main: Callable[..., object],
    args: tuple[Any, ...],
    *,
    device: str,
    num_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> None:
    """Run `main(*args)` in this process, or in each process of a group (NCCL on GPUs, gloo on CPUs).

    Started by torchrun, or whatever else sets RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR, this process is one of the
    group already and the numbers here are ignored. Otherwise `num_processes` are started on this machine, and the same
    call is to be made on each of `num_machines`. The first failure ends all processes.

    Args:
        main: importable, as the new processes import it; in a group, `detectron2.utils.comm` is set up before.
        device: "cuda": a GPU a process, by local rank; or "cpu".
        num_processes: on this machine.
        machine_rank: of this machine, 0 <= machine_rank < num_machines.
        dist_url: where the processes meet, as for `torch.distributed.init_process_group`; "auto" finds a free port of
            this machine, for one machine only.

    Raises:
        UserError: `dist_url` is "auto" for many machines.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        world_size = int(os.environ["WORLD_SIZE"])
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        first_rank = int(os.environ["RANK"]) - int(os.environ["LOCAL_RANK"])
        # `record` hands the traceback of a failure to torchrun, which shows the first one of all.
        record(_run)(int(os.environ["LOCAL_RANK"]), main, args, device, local_size, world_size, first_rank, "env://")
    elif num_processes * num_machines == 1:
        main(*args)
    else:
        if dist_url == "auto":
            if num_machines > 1:
                raise UserError('--dist-url "auto" is for one machine; give all machines the tcp://host:port of one')
            dist_url = f"tcp://127.0.0.1:{_free_port()}"
        world_size, first_rank = num_machines * num_processes, machine_rank * num_processes
        try:
            mp.spawn(
                _run,
                (main, args, device, num_processes, world_size, first_rank, dist_url),
                nprocs=num_processes,
            )
        except mp.ProcessExitedException as error:
            if error.exit_code != 2:
                raise
            sys.exit(2)  # a UserError, which the process has printed


@exit_on_user_error
def _run(
    local_rank: int,
    main: Callable[..., object],
    args: tuple[Any, ...],
    device: str,
    local_size: int,
    world_size: int,
    first_rank: int,
    init_method: str,
) -> None:
    is_gpu = torch.device(device).type == "cuda"
    if is_gpu:
        if local_size > torch.cuda.device_count():
            raise UserError(f"{local_size} processes are to run on {torch.cuda.device_count()} GPUs: one GPU each")
        torch.cuda.set_device(local_rank)
    rank = first_rank + local_rank
    dist.init_process_group("nccl" if is_gpu else "gloo", init_method, world_size=world_size, rank=rank)
    # What Detectron2's own launcher does; under this name in all its versions.
    comm._LOCAL_PROCESS_GROUP, _ = dist.new_subgroups(local_size)
    warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # at each exchange of objects by Detectron2 0.5
    main(*args)
    dist.barrier()  # none leaves while another still needs it
    _leave_group()


def _leave_group() -> None:
    """End the group and its threads, of which one that outlives the interpreter aborts the process at its exit."""
    dist.destroy_process_group()
    # The groups live on in Detectron2's globals and in the circles of a parallel model.
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    gc.collect()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
