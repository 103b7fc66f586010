"""Downloads from a server on this machine: resumed, checked, and clear where they fail."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dformer.utils.download import download
from dformer.utils.errors import UserError
from tests.server import Server, serving

CONTENT = bytes(range(256)) * 40
MD5 = hashlib.md5(CONTENT).hexdigest()[:6]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "model.pkl").write_bytes(CONTENT)
    with serving(tmp_path / "served") as server:
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "model.pkl"


def test_what_was_interrupted_is_continued(server: Server, file: Path) -> None:
    server.break_off = 4000
    for _ in range(2):
        with pytest.raises(UserError, match="model.pkl.*continues"):
            download(f"{server.url}/model.pkl", file, MD5)
        assert not file.exists()
    download(f"{server.url}/model.pkl", file, MD5)
    assert file.read_bytes() == CONTENT and server.asked == [0, 4000, 8000]
    assert not list(file.parent.glob("*.part"))
    download(f"{server.url}/model.pkl", file, MD5)
    assert len(server.asked) == 3, "what is there is not fetched again"


def test_a_server_without_ranges_sends_the_whole_again(server: Server, file: Path) -> None:
    server.break_off, server.ranges = 4000, False
    with pytest.raises(UserError):
        download(f"{server.url}/model.pkl", file, MD5)
    server.break_off = None
    download(f"{server.url}/model.pkl", file, MD5)
    assert file.read_bytes() == CONTENT


def test_a_download_that_was_killed_before_its_check_is_checked(server: Server, file: Path) -> None:
    file.parent.mkdir()
    file.with_name("model.pkl.part").write_bytes(CONTENT)
    download(f"{server.url}/model.pkl", file, MD5)
    assert file.read_bytes() == CONTENT


def test_another_file_is_refused_and_deleted(server: Server, file: Path) -> None:
    file.parent.mkdir()
    file.with_name("model.pkl.part").write_bytes(b"of another model")
    with pytest.raises(UserError, match=f"MD5.*{MD5}"):
        download(f"{server.url}/model.pkl", file, MD5)
    assert not file.exists() and not list(file.parent.glob("*.part"))
    download(f"{server.url}/model.pkl", file, MD5)
    assert file.read_bytes() == CONTENT


def test_without_the_file_or_a_network_it_says_what_to_do(server: Server, file: Path) -> None:
    with pytest.raises(UserError, match="no.pkl.*Not Found"):
        download(f"{server.url}/no.pkl", file, MD5)
    with pytest.raises(UserError, match=f"network.*{file}"):
        download("http://127.0.0.1:9/model.pkl", file, MD5)
    with pytest.raises(UserError, match="network"):
        download("http://no.such.host.invalid/model.pkl", file, MD5)


def test_one_of_several_downloads_and_the_others_wait(server: Server, file: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: download(f"{server.url}/model.pkl", file, MD5), range(4)))
    assert server.asked == [0] and file.read_bytes() == CONTENT
