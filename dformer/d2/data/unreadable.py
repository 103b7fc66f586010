"""Images that go missing or bad, and workers that die, in the middle of a run."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dformer.data.types import Record
from dformer.utils import rng
from dformer.utils.errors import UserError

logger = logging.getLogger(__name__)

Mapper = Callable[[Record], dict[str, Any]]


def map_or_replace(record: Record, mapper: Mapper, records: Sequence[Record], max_unreadable: int) -> dict[str, Any]:
    """Map a record or, if it cannot be read, another one of `records`, which depends on its file name alone.

    If another one was taken, the result has "unreadable": file name -> reason, for `count_unreadable`.

    Raises:
        UserError: more than `max_unreadable` records cannot be read.
    """
    unreadable: dict[str, str] = {}
    start = rng.seed("in place of", record["file_name"])
    for k in range(len(records)):
        try:
            item = mapper(record)
            return {**item, "unreadable": unreadable} if unreadable else item
        except UserError as error:
            unreadable[record["file_name"]] = str(error)
        if len(unreadable) > max_unreadable:
            break
        record = records[(start + k) % len(records)]
    raise _too_many(unreadable, max_unreadable)


def map_or_stop(record: Record, mapper: Mapper) -> dict[str, Any]:
    """Map a record, or raise a `UserError` that explains why the evaluation stops."""
    try:
        return mapper(record)
    except UserError as error:
        raise UserError(
            f"{error}; evaluation stops, as metrics without this image would not compare with others: restore the "
            "file, or remove the image from the data set's annotations"
        ) from error


def count_unreadable(batches: Iterable[list[dict[str, Any]]], max_unreadable: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the batches while `map_or_replace` has replaced at most `max_unreadable` files; log each of these once.

    Raises:
        UserError: there are more.
    """
    unreadable: dict[str, str] = {}
    for batch in batches:
        for item in batch:
            for file, reason in item.pop("unreadable", {}).items():
                if file not in unreadable:
                    unreadable[file] = reason
                    logger.warning(
                        f"{reason}; another image replaces it ({len(unreadable)} so far, training stops after "
                        f"{max_unreadable}: DATALOADER.MAX_UNREADABLE)"
                    )
        if len(unreadable) > max_unreadable:
            raise _too_many(unreadable, max_unreadable)
        yield batch


def _too_many(unreadable: dict[str, str], max_unreadable: int) -> UserError:
    reasons = "".join(f"\n  {reason}" for reason in unreadable.values())
    return UserError(
        f"more than {max_unreadable} images or annotations (DATALOADER.MAX_UNREADABLE) cannot be read:{reasons}\n"
        "Restore the files (is the disk still mounted?), then continue with --resume"
    )


@contextmanager
def workers_explained() -> Iterator[None]:
    """Turn what PyTorch raises for a worker that has died, or has raised a `UserError`, into a `UserError`."""
    try:
        yield
    except UserError as error:
        _, from_worker, message = str(error).rpartition("UserError: ")  # PyTorch puts the worker's traceback before
        if not from_worker:
            raise
        raise UserError(message.strip()) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that loads data has died: {str(error).splitlines()[0]} If it was killed, the system most often "
            "had no memory left (see `dmesg`); a bus error means that shared memory, /dev/shm, is full. Lower "
            "DATALOADER.NUM_WORKERS, or give the job more memory, then continue with --resume"
        ) from error
