import pytest

from dformer.utils.files import atomic_folder


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "old").touch()
        assert not (tmp_path / "a").exists()
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "a") as folder:
        (folder / "new").touch()
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "old"]
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "new").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "new"]
