"""A batch in parts has the gradients of the whole; so has a model that computes its activations twice."""

from contextlib import nullcontext

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from dformer.d2.modeling.accumulation import accumulate_gradients
from dformer.layers.checkpointing import checkpoint_activations
from tests.d2.systems import SYSTEMS
from tests.d2.tiny import tiny_batch


def deterministic(system: str) -> CfgNode:
    """Without dropout, whose draws depend on the order of the images."""
    cfg = SYSTEMS[system]()
    cfg.MODEL.PIX2SEQD.ENCODER_DROPOUT = cfg.MODEL.PIX2SEQD.ENCODER_DROP_PATH = 0.0
    return cfg


def gradients(cfg: CfgNode, parts: int, checkpointing: bool = False) -> tuple[dict[str, float], torch.Tensor, list]:
    torch.manual_seed(0)
    model = build_model(cfg).train()
    model.iteration = 5
    blocks = checkpoint_activations(model) if checkpointing else []
    batch = [*tiny_batch((3, 0)), *tiny_batch((0, 0, 5), 96)[1:]]  # of two sizes, with other numbers of objects
    losses = accumulate_gradients(model, model, batch, parts, [], nullcontext(), torch.Tensor.backward)
    assert model.iteration == 6
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return {name: loss.item() for name, loss in losses.items()}, torch.cat(grads), blocks


@pytest.mark.parametrize("system", SYSTEMS)
def test_parts_have_the_gradients_of_the_joint_batch(system: str) -> None:
    cfg = deterministic(system)
    losses, whole, _ = gradients(cfg, 1)
    of_parts, grads, _ = gradients(cfg, 2)
    assert of_parts == pytest.approx(losses, rel=1e-5, abs=1e-6)
    assert (grads - whole).norm() < 1e-5 * whole.norm()


@pytest.mark.parametrize("system", SYSTEMS)
def test_checkpointing_changes_no_gradient(system: str) -> None:
    losses, whole, _ = gradients(SYSTEMS[system](), 1)
    again, grads, blocks = gradients(SYSTEMS[system](), 1, checkpointing=True)
    assert bool(blocks) == (system != "MaskAutoencoder") and losses == again
    torch.testing.assert_close(grads, whole, rtol=1e-6, atol=1e-7)
