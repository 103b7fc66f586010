"""Lock of an output folder: one run at a time."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dformer.utils.errors import UserError
from dformer.utils.files import remove_partial

logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Lock `folder` for this process, and remove the half-written checkpoints of a run that was killed.

    The lock ends with the process, however that ends. If another process holds it, that is a `UserError`.
    """
    import fcntl  # not on Windows, where this module is imported too

    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            # Not flock, which forked processes share: loader workers would hold it for some seconds after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise UserError(
                f"OUTPUT_DIR {folder} is in use by another training: {file.read().strip() or 'unknown process'}. "
                "Wait for its end, stop it, or give another OUTPUT_DIR"
            ) from error
        except OSError as error:  # file systems without locks
            logger.warning(f"{path} cannot be locked ({error.strerror}): make sure that no second run uses the folder")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        remove_partial(folder)
        yield
