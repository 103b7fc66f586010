"""One process or many, on CPUs or GPUs: the same function runs in each."""

import contextlib
import gc
import hashlib
import os
import signal
import socket
import sys
import time
import warnings
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
from dformer.utils.errors import USER_ERROR, UserError, exit_on_user_error
from dformer.utils.processes import SIGNALS

ANNOUNCEMENT = 5.0  # seconds in which all processes that wait in vain for another say so


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
        timeout: minutes that a process waits for the others, after which it fails and tells for whom.

    Raises:
        UserError: `dist_url` is "auto" for many machines.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        world_size = int(os.environ["WORLD_SIZE"])
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        first_rank = int(os.environ["RANK"]) - int(os.environ["LOCAL_RANK"])
        # `record` hands the traceback of a failure to torchrun, which shows the first one of all.
        record(_run)(
            int(os.environ["LOCAL_RANK"]), main, args, device, local_size, world_size, first_rank, "env://", timeout
        )
    elif num_processes * num_machines == 1:
        main(*args)
    else:
        if dist_url == "auto":
            if num_machines > 1:
                raise UserError('--dist-url "auto" is for one machine; give all machines the tcp://host:port of one')
            dist_url = f"tcp://127.0.0.1:{_free_port()}"
        world_size, first_rank = num_machines * num_processes, machine_rank * num_processes
        _spawn(num_processes, (main, args, device, num_processes, world_size, first_rank, dist_url, timeout))


def _spawn(num_processes: int, args: tuple[Any, ...]) -> None:
    """Start processes that run `_spawned`, hand on signals to them, and leave as they do."""
    # Ignored until they are able to handle it: the terminal sends it to all, and this process hands it on.
    former = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    context = mp.spawn(_spawned, args, nprocs=num_processes, join=False)
    received: list[int] = []

    def hand_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        for pid in context.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    for number in SIGNALS:
        signal.signal(number, hand_on)
    try:
        while not context.join():
            pass
    except mp.ProcessExitedException as error:
        if error.exit_code in (USER_ERROR, RESUME_ME):
            sys.exit(error.exit_code)  # the process has said why
        if received:
            sys.exit(128 + received[0])
        raise
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _spawned(*args: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _run(*args)


@contextmanager
def told_once() -> Iterator[None]:
    """Within, of the processes that meet the same `UserError`, the first raises it, and the others leave."""
    try:
        yield
    except UserError as error:
        if not _is_first(str(error)):
            sys.exit(USER_ERROR)
        raise


def _is_first(message: str) -> bool:
    key = f"told/{hashlib.sha256(message.encode()).hexdigest()}"
    try:
        store = _get_default_store() if dist.is_initialized() else _store_of_torchrun()
        return store is None or store.add(key, 1) == 1
    except RuntimeError:  # the process that kept the store has left, and it said why
        return False


def _store_of_torchrun() -> dist.Store | None:
    """torchrun's own store, where it started this process and offers it.

    On one machine, the store is the same after a restart, and gloo would find the addresses of processes that are gone:
    each attempt has its part of it. (Of many machines, not all count the attempts alike.)
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    is_alone = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store) if is_alone else store


@contextmanager
def _missing_are_named(timeout: float) -> Iterator[None]:
    """Within, where a collective times out, the error tells which processes did not come to it."""
    store, rank = _get_default_store(), dist.get_rank()
    store.set(f"host/{rank}", socket.gethostname())
    try:
        yield
    except RuntimeError as error:
        if "timed out" not in str(error).lower():
            raise
        store.add(f"waits/{rank}", 1)
        time.sleep(ANNOUNCEMENT)
        names = {r: f"rank {r} on {store.get(f'host/{r}').decode()}" for r in range(dist.get_world_size())}
        missing = [name for r, name in names.items() if store.add(f"waits/{r}", 0) == 0]
        raise TimeoutError(
            f"{names[rank]} waited {timeout:g} minutes (COLLECTIVE_TIMEOUT) for {', '.join(missing) or 'the others'}: "
            "hanging, or much slower. Its own log is log.txt.rank<n> in OUTPUT_DIR"
        ) from error


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
    timeout: float,
) -> None:
    is_gpu = torch.device(device).type == "cuda"
    if is_gpu:
        if local_size > torch.cuda.device_count():
            raise UserError(f"{local_size} processes are to run on {torch.cuda.device_count()} GPUs: one GPU each")
        torch.cuda.set_device(local_rank)
    rank = first_rank + local_rank
    limit = timedelta(minutes=timeout)
    backend = "nccl" if is_gpu else "gloo"
    store = _store_of_torchrun()
    place: dict[str, Any] = {"store": store} if store else {"init_method": init_method}
    dist.init_process_group(backend, world_size=world_size, rank=rank, timeout=limit, **place)
    # What Detectron2's own launcher does; under this name in all its versions.
    comm._LOCAL_PROCESS_GROUP, _ = dist.new_subgroups(local_size, timeout=limit)
    warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # at each exchange of objects by Detectron2 0.5
    try:
        with told_once(), _missing_are_named(timeout):
            main(*args)
            dist.barrier()  # none leaves while another still needs it
    except SystemExit:
        _leave_group()
        raise
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
