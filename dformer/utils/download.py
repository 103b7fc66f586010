"""Download of a file that is known by the beginning of its MD5."""

import hashlib
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import portalocker
from tqdm import tqdm

from dformer.utils.errors import UserError

TIMEOUT = 30  # seconds without a byte
RANGE_NOT_SATISFIABLE = 416  # there is nothing after what we have


def download(url: str, file: Path, md5: str) -> None:
    """Fetch `url` into `file`, which appears when it is whole and its MD5 begins with `md5`.

    A call that was interrupted is continued by the next one, `<file>.part`. Of several processes, one downloads and the
    others wait.

    Raises:
        UserError: it cannot be fetched, or is another file; that is deleted.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.part")
    with portalocker.Lock(file.with_name(f"{file.name}.lock"), "w", flags=portalocker.LockFlags.EXCLUSIVE):
        if file.is_file():
            return
        try:
            with partial.open("ab") as stream:
                _append(url, stream)
        except (OSError, HTTPException) as error:
            raise UserError(
                f"{url} cannot be fetched: {getattr(error, 'reason', None) or error}. Run the same again: it continues "
                f"with what has arrived. Without a network, get the file elsewhere, and put it at {file}"
            ) from error
        found = _md5(partial)
        if not found.startswith(md5):
            partial.unlink()
            raise UserError(
                f"{url} is damaged or was replaced: its MD5 is {found}, but must begin with {md5}. It was deleted; run "
                "the same again"
            )
        partial.rename(file)


def _md5(file: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _append(url: str, stream: BinaryIO) -> None:
    """Fetch what `stream` does not have yet."""
    start = stream.tell()
    try:
        response = urlopen(Request(url, headers={"Range": f"bytes={start}-"} if start else {}), timeout=TIMEOUT)
    except HTTPError as error:
        if start and error.code == RANGE_NOT_SATISFIABLE:
            return
        raise
    with response:
        if start and response.status != 206:  # a server that always sends the whole
            stream.truncate(start := 0)
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        name = url.rsplit("/", 1)[-1]
        with tqdm(initial=start, total=total, desc=name, unit="B", unit_scale=True) as progress:
            while block := response.read(1 << 20):
                stream.write(block)
                progress.update(len(block))
            if total is not None and progress.n < total:
                raise ConnectionError(f"the connection ended after {progress.n} of {total} bytes")
