"""Checkpoints are written whole and with the config; what cannot be read or resumed is an error."""

import logging
import os

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
    with pytest.raises(UserError, match=r"model\.pth .*no space left"):
        line.save("model")
    assert (tmp_path / "model.pth").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth"]


def test_the_summary_is_logged(tmp_path, caplog):
    weights = Model().state_dict()
    weights["surplus.weight"] = weights.pop("head.weight")
    torch.save(weights, tmp_path / "other.pth")
    with caplog.at_level(logging.INFO):
        checkpointer(MODEL__WEIGHTS_STRICT=False).load(str(tmp_path / "other.pth"), checkpointables=[])
    for text in ("other.pth", "unexpected        1  surplus.weight", "missing           1  head.weight"):
        assert text in caplog.text


def test_a_run_is_not_resumed_from_half_a_model(tmp_path):
    weights = Model().state_dict()
    del weights["head.bias"]
    torch.save(weights, tmp_path / "half.pth")
    line = checkpointer(MODEL__WEIGHTS_STRICT=False)
    line.load(str(tmp_path / "half.pth"), checkpointables=[])
    with pytest.raises(UserError, match=r"1 missing \(head\.bias\)"):
        line.load(str(tmp_path / "half.pth"))


def test_without_weights_nothing_is_loaded(caplog):
    with caplog.at_level(logging.INFO):
        assert checkpointer().load("") == {}
    assert "MODEL.WEIGHTS" in caplog.text


def test_weights_that_cannot_be_fetched_are_named():
    with pytest.raises(UserError, match=r"nowhere/model\.pth"):
        fetch_checkpoint("nowhere/model.pth")
    with pytest.raises(UserError, match=r"weights https://nowhere\.invalid/model\.pth"):
        fetch_checkpoint("https://nowhere.invalid/model.pth")
