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


class Replacing:
    """A mapper for training: in place of a record that cannot be read, another one is mapped.

    Which one depends on the file's name alone. What could not be read goes along, for `count_unreadable`.

    Args:
        mapper: of a record.
        records: where others are taken from.
        limit: of records that are tried in place of one.
    """

    def __init__(self, mapper: Mapper, records: Sequence[Record], limit: int) -> None:
        self.mapper = mapper
        self.records = records
        self.limit = limit

    def __call__(self, record: Record) -> dict[str, Any]:
        """The mapped record, with "unreadable": file -> reason, where there was something."""
        unreadable: dict[str, str] = {}
        start = rng.generator("cpu", "in place of", record["file_name"]).initial_seed()
        for k in range(len(self.records)):
            try:
                item = self.mapper(record)
                return {**item, "unreadable": unreadable} if unreadable else item
            except UserError as error:
                unreadable[record["file_name"]] = str(error)
            if len(unreadable) > self.limit:
                break
            record = self.records[(start + k) % len(self.records)]
        raise too_many(unreadable, self.limit)


class Needed:
    """A mapper for evaluation: an image that cannot be read ends it."""

    def __init__(self, mapper: Mapper) -> None:
        self.mapper = mapper

    def __call__(self, record: Record) -> dict[str, Any]:
        try:
            return self.mapper(record)
        except UserError as error:
            raise UserError(
                f"{error}; evaluation stops, as metrics without this image would not compare with others: put the file "
                "back, or take the image out of the data set's annotations"
            ) from error


def count_unreadable(batches: Iterable[list[dict[str, Any]]], limit: int) -> Iterator[list[dict[str, Any]]]:
    """The batches, while at most `limit` files were replaced by a `Replacing` mapper; each is told once.

    Raises:
        UserError: there were more.
    """
    unreadable: dict[str, str] = {}
    for batch in batches:
        for item in batch:
            new = {file: why for file, why in item.pop("unreadable", {}).items() if file not in unreadable}
            unreadable |= new
            for why in new.values():
                logger.warning(
                    f"{why}; another image is taken in its place ({len(unreadable)} so far, training stops after "
                    f"{limit}: DATALOADER.MAX_UNREADABLE)"
                )
        if len(unreadable) > limit:
            raise too_many(unreadable, limit)
        yield batch


def too_many(unreadable: dict[str, str], limit: int) -> UserError:
    reasons = "".join(f"\n  {why}" for why in unreadable.values())
    return UserError(
        f"more than {limit} images or annotations (DATALOADER.MAX_UNREADABLE) cannot be read:{reasons}\n"
        "Mend or restore the files (is the disk still mounted?), then go on with --resume"
    )


@contextmanager
def workers_explained() -> Iterator[None]:
    """Turn what PyTorch raises for a loader's worker, wherever the process just is, into words for the user.

    Raises:
        UserError: a worker has died, or has raised one.
    """
    try:
        yield
    except UserError as error:
        _, of_worker, message = str(error).rpartition("UserError: ")  # PyTorch puts the worker's traceback before
        if not of_worker:
            raise
        raise UserError(message.strip()) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that loads data has died: {str(error).splitlines()[0]} Killed, without a word of its own, it "
            "most often was by the system, for want of memory (`dmesg` tells); by a bus error, for want of shared "
            "memory (/dev/shm). Lower DATALOADER.NUM_WORKERS, or give the job more memory, then go on with --resume"
        ) from error
