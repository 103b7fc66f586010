"""Start one process or a group of processes, on CPUs or GPUs."""

import contextlib
import gc
import hashlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.elastic.multiprocessing.errors import record

from dformer.d2.engine.interruption import RESUME_ME
from dformer.utils import groups
from dformer.utils.errors import USER_ERROR, UserError, exit_on_user_error
from dformer.utils.processes import SIGNALS


def launch(
    main: Callable[..., object],
    args: tuple[Any, ...],
    *,
    device: str,
    num_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    timeout: float = 30.0,
) -> None:
    """Run `main(*args)` in this process, or in each process of a group (NCCL on GPUs, gloo on CPUs).

    In a process that torchrun or srun has started (RANK, WORLD_SIZE and LOCAL_RANK are set), the group is theirs and
    the numbers here are ignored. Otherwise this starts `num_processes` on this machine, and the same call has to be
    made on each of `num_machines`. The first failure ends all processes.

    Args:
        main: an importable function; in a group, `detectron2.utils.comm` is set up when it runs.
        device: "cuda" (one GPU per process, by local rank) or "cpu".
        dist_url: as for `torch.distributed.init_process_group`; "auto", for one machine only, takes a free port.
        timeout: minutes that a process waits in a collective for the others before it fails.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        record(_run)(main, args, device, "env://", timeout)  # `record` passes the traceback of a failure to torchrun
    elif num_processes * num_machines == 1:
        main(*args)
    else:
        if dist_url == "auto":
            if num_machines > 1:
                raise UserError('--dist-url "auto" is for one machine; give all machines the tcp://host:port of one')
            with socket.create_server(("127.0.0.1", 0)) as free:
                dist_url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        first_rank, world_size = machine_rank * num_processes, num_machines * num_processes
        # With a GPU, from a server that imports everything once more: a driver that is loaded cannot be forked.
        method = "fork" if device == "cpu" else "forkserver"
        _spawn(
            method, num_processes, main, (first_rank, num_processes, world_size, main, args, device, dist_url, timeout)
        )


def _spawn(method: Any, num_processes: int, main: Callable[..., object], args: tuple[Any, ...]) -> None:
    """Start `_spawned` in processes, forward signals to them, and exit with their exit code."""
    # The terminal sends ^C to all processes; until the new ones have a handler, only this one may react to it.
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Either way, forked from a process that has imported everything, and has neither threads nor a GPU yet.
    multiprocessing.get_context(method).set_forkserver_preload([__name__, main.__module__])
    context = mp.start_processes(_spawned, args, nprocs=num_processes, join=False, start_method=method)
    received: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        received.append(number)
        for pid in context.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    for number in SIGNALS:
        signal.signal(number, forward)
    try:
        while not context.join():
            pass
    except mp.ProcessExitedException as error:
        if error.exit_code in (USER_ERROR, RESUME_ME):
            sys.exit(error.exit_code)  # the process has printed the reason
        if received:
            sys.exit(128 + received[0])
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _spawned(local_rank: int, first_rank: int, local_size: int, world_size: int, *args: Any) -> None:
    gc.freeze()  # what was imported before the fork stays: looking through it takes time, and copies the shared pages
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    multiprocessing.set_start_method("fork", force=True)  # of loader workers; else each would import everything anew
    ranks = {"RANK": first_rank + local_rank, "LOCAL_RANK": local_rank}
    sizes = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": local_size}
    os.environ |= {name: str(value) for name, value in (ranks | sizes).items()}
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    _run(*args)


def _end_with_launcher() -> None:
    """Ask this process to stop if the one that has started it is killed; else it would run on, unseen."""
    launcher = multiprocessing.parent_process()
    if launcher:
        launcher.join()
    os.kill(os.getpid(), signal.SIGTERM)


@exit_on_user_error
def _run(main: Callable[..., object], args: tuple[Any, ...], device: str, init_method: str, timeout: float) -> None:
    rank, local_rank, world_size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    is_gpu = torch.device(device).type == "cuda"
    if is_gpu:
        torch.cuda.set_device(own_gpu(local_rank, local_size, torch.cuda.device_count()))
    limit = timedelta(minutes=timeout)
    store = _torchrun_store()
    place: dict[str, Any] = {"store": store} if store else {"init_method": init_method}
    dist.init_process_group("nccl" if is_gpu else "gloo", world_size=world_size, rank=rank, timeout=limit, **place)
    # As Detectron2's own launcher does; all its versions have this name.
    comm._LOCAL_PROCESS_GROUP, _ = dist.new_subgroups(local_size, timeout=limit)
    try:
        with raise_once():
            main(*args)
            groups.wait_for_all()  # none leaves while another still needs it
    except SystemExit:
        _leave_group()
        raise
    _leave_group()


def own_gpu(local_rank: int, local_size: int, found: int) -> int:
    """Return the index of the GPU of a process: its rank on the machine, or 0 where it was given one of its own.

    Args:
        local_rank, local_size: rank and number of processes on this machine.
        found: number of GPUs that the process sees. SLURM shows each task one with `srun --gpus-per-task=1`.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    if found == 1 and "SLURM_PROCID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0
    if local_size > found:
        raise UserError(f"MODEL.DEVICE cuda: {local_size} processes need a GPU each, found {found}")
    return local_rank


@contextmanager
def raise_once() -> Iterator[None]:
    """Raise a `UserError` that several processes meet in the first of them; the others exit without a message."""
    try:
        yield
    except UserError as error:
        key = f"error/{hashlib.sha256(str(error).encode()).hexdigest()}"
        try:
            store = _get_default_store() if dist.is_initialized() else _torchrun_store()
            is_first = store is None or store.add(key, 1) == 1
        except RuntimeError:  # the process that kept the store has left, after it printed the error
            is_first = False
        if not is_first:
            sys.exit(USER_ERROR)
        raise


def _torchrun_store() -> dist.Store | None:
    """Return torchrun's own store, where it started this process and offers it.

    On one machine, the store survives a restart, and gloo would find the addresses of processes that are gone: so
    each attempt gets a prefix. (Several machines may count the attempts differently.)
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    is_alone = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store) if is_alone else store


def _leave_group() -> None:
    """End the group and its threads: one that outlives the interpreter aborts the process at its exit."""
    dist.destroy_process_group()
    # Detectron2's globals and reference cycles of a parallel model keep groups alive.
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    groups.close_group()
    gc.collect()
