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
    assert all(map(torch.equal, saved.parameters(), loaded.parameters()))
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth"]


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    saver = checkpointer(tmp_path)
    saver.save("model")
    before = (tmp_path / "model.pth").read_bytes()

    def fail(content, file):
        file.write(b"half a checkpoint")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match=r"model\.pth .*no space left"):
        saver.save("model")
    assert (tmp_path / "model.pth").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth"]


def test_a_run_is_not_resumed_from_half_a_model(tmp_path, caplog):
    """Otherwise what is missing is logged."""
    weights = Model().state_dict()
    weights["extra.bias"] = weights.pop("head.bias")
    torch.save(weights, tmp_path / "half.pth")
    half = checkpointer(MODEL__WEIGHTS_STRICT=False)
    with caplog.at_level(logging.INFO):
        half.load(str(tmp_path / "half.pth"), checkpointables=[])
    for text in ("half.pth", "extra.bias", "head.bias"):
        assert text in caplog.text
    with pytest.raises(UserError, match=r"missing.*head\.bias"):
        half.load(str(tmp_path / "half.pth"))


def test_without_weights_nothing_is_loaded(caplog):
    with caplog.at_level(logging.INFO):
        assert checkpointer().load("") == {}
    assert "MODEL.WEIGHTS" in caplog.text


@pytest.mark.parametrize("path", ["nowhere/model.pth", "https://nowhere.invalid/model.pth"])
def test_weights_that_cannot_be_fetched_are_named(path):
    with pytest.raises(UserError, match=path):
        fetch_checkpoint(path)
