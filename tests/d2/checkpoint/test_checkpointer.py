"""Checkpoints are written whole, with the config, and read safely; clear words tell what cannot be."""

import logging
import os
import pickle

import pytest
import torch
from torch import nn

from dformer.d2.checkpoint.checkpointer import Checkpointer, fetch_checkpoint
from dformer.d2.config import get_cfg
from dformer.utils.errors import UserError


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Conv2d(3, 2, 3)
        self.head = nn.Linear(2, 2)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


def checkpointer(folder=".", model: nn.Module | None = None, **changes) -> Checkpointer:
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(folder)
    cfg.merge_from_list([word for key, value in changes.items() for word in (key.replace("__", "."), value)])
    return Checkpointer(model or Model(), cfg)


def test_what_is_saved_is_loaded_with_its_config(tmp_path):
    saved, loaded = Model(), Model()
    checkpointer(tmp_path, saved, SEED=5).save("model", iteration=7)
    checkpoint = checkpointer(model=loaded).load(str(tmp_path / "model.pth"))
    assert checkpoint["iteration"] == 7 and "SEED: 5\n" in checkpoint["config"]
    assert all(
        torch.equal(a, b) for a, b in zip(saved.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth"]


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    line = checkpointer(tmp_path)
    line.save("model")
    before = (tmp_path / "model.pth").read_bytes()

    def fail(content, file):
        file.write(b"half a checkpoint")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match=r"model\.pth cannot be written: no space left"):
        line.save("model")
    assert (tmp_path / "model.pth").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth"]


def test_the_account_is_logged(tmp_path, caplog):
    weights = Model().state_dict()
    weights["surplus.weight"] = weights.pop("head.weight")
    torch.save(weights, tmp_path / "other.pth")
    with caplog.at_level(logging.INFO):
        checkpointer(MODEL__WEIGHTS_STRICT=False).load(str(tmp_path / "other.pth"), checkpointables=[])
    assert all(name in caplog.text for name in ("other.pth", "not in this model: surplus.weight", "file: head.weight"))


def test_a_run_is_not_resumed_from_half_a_model(tmp_path):
    weights = Model().state_dict()
    del weights["head.bias"]
    torch.save(weights, tmp_path / "half.pth")
    line = checkpointer(MODEL__WEIGHTS_STRICT=False)
    line.load(str(tmp_path / "half.pth"), checkpointables=[])
    with pytest.raises(UserError, match=r"1 missing \(head\.bias\)"):
        line.load(str(tmp_path / "half.pth"))


def test_without_weights_all_is_initial(caplog):
    with caplog.at_level(logging.INFO):
        assert checkpointer().load("") == {}
    assert "all weights are initial" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", pickle.dumps(Trap(), 2), pickle.dumps({"a": 1}, 2)],
    ids=["empty", "text", "code", "a number"],
)
@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_what_is_not_a_checkpoint_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"file.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        fetch_checkpoint(str(path))


def test_a_pickle_is_not_run(tmp_path):
    torch.save({"model": {"x": Trap()}}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="could run code"):
        fetch_checkpoint(str(tmp_path / "trap.pth"))


def test_what_cannot_be_had_is_named():
    with pytest.raises(UserError, match=r"nowhere/model\.pth"):
        fetch_checkpoint("nowhere/model.pth")
    with pytest.raises(UserError, match=r"weights https://nowhere\.invalid/model\.pth cannot be fetched"):
        fetch_checkpoint("https://nowhere.invalid/model.pth")
