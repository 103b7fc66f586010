"""Atomic writing of files, and JSON."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dformer.utils.errors import UserError
from dformer.utils.memory import gc_paused

PARTIAL = ".partial-"  # prefix of a file that is being written
MAX_JSON = 8 << 30  # bytes


@contextmanager
def atomic_write(path: str | Path, keep_interrupted: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` once it is written and on the disk.

    After an error the temporary file is removed and `path` stays as it was.

    Args:
        path: the temporary path has the same suffix.
        keep_interrupted: also rename after KeyboardInterrupt, for files that are valid at any time.
    """
    path = Path(path)
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        try:
            yield partial
        except KeyboardInterrupt:
            if keep_interrupted and partial.exists():
                _rename(partial, path)
            raise
        _rename(partial, path)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error  # as torch's writer raises it
        if not isinstance(cause, OSError):
            raise
        raise UserError(f"{path} cannot be written: {cause.strerror or cause}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, and rename it to `path`, which it replaces, once it is complete.

    After an error the new folder is removed and `path` stays as it was.
    """
    path = Path(path)
    partial = path.with_name(f"{PARTIAL}{path.name}")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    try:
        partial.mkdir(parents=True)
        yield partial
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial(folder: str | Path) -> None:
    """Remove temporary files of killed writers from `folder`; no other process may be writing there."""
    for partial in Path(folder).glob(f"{PARTIAL}*"):
        partial.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Write `content` as JSON atomically; create missing parent folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write_text(json.dumps(content, indent=indent) + "\n")


def read_json(path: str | Path, remedy: str = "") -> Any:
    """Read a JSON file and return its content; a `UserError` says why it cannot be read, and `remedy` what to do."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"it is larger than {MAX_JSON >> 30} GiB")
        with gc_paused():
            return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:  # of lists that are nested too deeply
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path} cannot be read as JSON: {reason}{f'; {remedy}' if remedy else ''}") from error


def _rename(partial: Path, path: Path) -> None:
    _sync(partial)  # otherwise the name may reach the disk before the content
    os.replace(partial, path)
    if os.name == "posix":  # elsewhere, folders cannot be opened
        _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # as Windows wants files opened
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
