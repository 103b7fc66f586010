"""A bad step again: with the random numbers that it had."""

import random

import numpy as np
import torch
from detectron2.modeling import build_model

from dformer.d2.engine.nonfinite import replay, save_for_replay, trace
from dformer.utils import rng
from tests.d2.tiny import tiny_batch, tiny_cfg


def dropping(cfg, drawn: list[torch.Tensor]) -> torch.nn.Module:
    """A model whose backbone draws from the global generator, as drop path does, and fails where it draws this."""
    model = build_model(cfg)

    def draw(module, inputs, output):
        drawn.append(torch.rand(4))
        return output * (torch.nan if torch.equal(drawn[0], drawn[-1]) else 1)

    model.backbone.stages["res2"].register_forward_hook(draw)
    return model.train()


def test_tracing_draws_what_the_step_drew(tmp_path):
    cfg = tiny_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    batch, drawn = tiny_batch((2, 3)), []
    model = dropping(cfg, drawn)
    model.iteration = 7
    rng.seed_all("step", cfg.SEED, 0, 7)  # as the trainer does
    model(batch)
    rng.seed_all("something later")
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    sentences = trace(cfg, model, batch, rank=0)
    assert torch.equal(drawn[0], drawn[1]) and "stages.res2" in sentences[0]
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()
    assert "finite" in trace(cfg, model, batch, rank=1)[0] and not torch.equal(drawn[0], drawn[-1])


def test_a_replay_draws_what_the_step_drew(tmp_path, monkeypatch):
    cfg = tiny_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    batch, drawn = tiny_batch((2,)), []
    model = dropping(cfg, drawn)
    model.iteration = 7
    rng.seed_all("step", cfg.SEED, 0, 7)
    model(batch)
    file = save_for_replay(cfg, model, batch, 7)
    monkeypatch.setattr("dformer.d2.engine.nonfinite.build_model", lambda cfg: dropping(cfg, drawn))
    assert "stages.res2" in replay(file, "cpu")[0]
    assert torch.equal(drawn[0], drawn[1])
