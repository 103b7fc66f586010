"""A batch in parts has the gradients of the whole; so has a model that computes its activations twice."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from dformer.d2.engine.trainer import Trainer
from dformer.d2.modeling.accumulation import accumulate_gradients
from dformer.layers.checkpointing import checkpoint_activations
from tests.d2.systems import SYSTEMS
from tests.d2.tiny import own_loggers, small_shapes, tiny_batch, tiny_cfg


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


@pytest.mark.parametrize(("checkpointing", "calls"), [(False, 4), (True, 6)])
def test_a_training_does_what_its_config_says(
    tmp_path: Path, empty_catalogs: None, checkpointing: bool, calls: int
) -> None:
    """Each of two parts is computed to count, and for its gradients; these compute a checkpointed layer once more."""
    small_shapes(tmp_path, "few", train=2, val=1)
    cfg = tiny_cfg(opts=["SOLVER.ACCUMULATE", "2", "SOLVER.ACTIVATION_CHECKPOINTING", str(checkpointing)])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("few_train",), ()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.OUTPUT_DIR = 1, 2, str(tmp_path)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    images, computed = [], []
    trainer.model.register_forward_pre_hook(lambda _, inputs: images.append(len(inputs[0])))
    part = next(iter(trainer.model.head.mask_decoder.layers[0].children()))
    part.register_forward_pre_hook(lambda *_: computed.append(part))
    with own_loggers():
        trainer.train()
    assert images == 4 * [1] and len(computed) == calls
