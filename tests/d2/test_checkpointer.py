"""Checkpoints are read safely, and clear words tell what cannot be."""

import logging
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from dformer.d2.checkpointer import Checkpointer
from dformer.errors import UserError


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Conv2d(3, 2, 3)
        self.head = nn.Linear(2, 2)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


def test_what_is_saved_is_loaded(tmp_path):
    saved, loaded = Model(), Model()
    Checkpointer(saved, str(tmp_path)).save("model", iteration=7)
    assert Checkpointer(loaded).load(str(tmp_path / "model.pth"))["iteration"] == 7
    assert all(
        torch.equal(a, b) for a, b in zip(saved.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_names_of_a_model_zoo_are_translated(tmp_path):
    path = tmp_path / "R-50.pkl"
    weight = np.random.rand(2, 3, 3, 3).astype(np.float32)
    content = {"model": {"stem.weight": weight}, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    model = Model()
    Checkpointer(model).load(str(path))
    assert np.array_equal(model.backbone.stem.weight.detach(), weight)


def test_missing_and_left_over_keys_are_logged(tmp_path, caplog):
    weights = Model().state_dict()
    weights["surplus.weight"] = weights.pop("head.weight")
    weights["head.bias"] = torch.zeros(9)
    torch.save(weights, tmp_path / "other.pth")
    with caplog.at_level(logging.WARNING):
        Checkpointer(Model()).load(str(tmp_path / "other.pth"))
    assert all(name in caplog.text for name in ("surplus", "head", "(9,)"))


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
        Checkpointer(Model()).load(str(path))


def test_a_pickle_is_not_run(tmp_path):
    torch.save({"model": {"x": Trap()}}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="could run code"):
        Checkpointer(Model()).load(str(tmp_path / "trap.pth"))


def test_a_file_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="nowhere/model.pth"):
        Checkpointer(Model()).load("nowhere/model.pth")


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save({"transformer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"transformer\.weight.*backbone\.stem\.weight"):
        Checkpointer(Model()).load(str(tmp_path / "other.pth"))
