#!/usr/bin/env python3
"""Memory of a training step of every system, against image size, batch and what saves memory; needs no GPU and no time.

python benchmarks/memory/training.py --sizes 512 1024 --batches 1 16 --json benchmarks/results/memory.json

The step runs on tensors without values. Counted are all that are alive on the device together: parameters, gradients,
the optimizer's state, activations: what `torch.cuda.max_memory_allocated` counts, without workspaces of libraries.
"""

import argparse
import json
import sys
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from tabulate import tabulate
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from dformer.d2.config import get_cfg, merge_config  # noqa: E402
from dformer.d2.engine.optimizer import build_optimizer, clip_gradients  # noqa: E402
from dformer.d2.modeling.accumulation import accumulate_gradients  # noqa: E402
from dformer.layers.checkpointing import checkpoint_activations  # noqa: E402
from tests.fake_cuda import fake_cuda  # noqa: E402

sys.path.insert(0, str(ROOT / "benchmarks"))
from measure import TorchDispatchMode  # noqa: E402

CONFIGS = {
    "DFormer": "coco/panoptic/dformer_r50_50ep.yaml",
    "Mask2Former": "coco/panoptic/mask2former_r50_50ep.yaml",
    "DiffusionInst": "coco/instance/diffusioninst_r50_5x.yaml",
    "Pix2Seq-D": "coco/panoptic/pix2seqd_r50_512.yaml",
    "LDMSeg": "coco/ldmseg/ldmseg_r50_50k.yaml",
}
OBJECTS, CLASSES = 10, 80  # of an image


class Allocated(TorchDispatchMode):
    """Count the bytes of tensors on the device, as they come and go; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def count(self, x: Any) -> None:
        """Count a tensor's memory, once for all tensors that share it."""
        if not isinstance(x, FakeTensor) or x.device.type != "cuda":
            return
        storage = x.untyped_storage()
        if not hasattr(storage, "is_counted"):
            storage.is_counted = True
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.free, size)

    def free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            self.count(x)
        return result


def batch_of(cfg: CfgNode, size: int, count: int) -> list[dict[str, Any]]:
    """Return images with the targets that the config asks for."""
    items = []
    for image_id in range(count):
        instances = Instances((size, size), gt_classes=torch.arange(OBJECTS) % CLASSES)
        if cfg.INPUT.TARGET != "panoptic_map":
            instances.gt_masks = torch.ones(OBJECTS, size, size, dtype=torch.bool)
            instances.gt_boxes = Boxes(torch.tensor([[0.0, 0.0, size, size]]).repeat(OBJECTS, 1))
        image = torch.zeros(3, size, size, dtype=torch.uint8)
        panoptic_map = torch.ones(size, size, dtype=torch.int64)
        items.append({"image": image, "image_id": image_id, "instances": instances, "panoptic_map": panoptic_map})
    return items


def peak(system: str, size: int, batch: int, parts: int, checkpointing: bool) -> float:
    """Return the GiB of two training steps, the first of which makes the optimizer's state."""
    cfg = get_cfg()
    merge_config(cfg, str(ROOT / "configs" / CONFIGS[system]), ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    cfg.MODEL.CLASSES = [str(k) for k in range(CLASSES)]
    cfg.MODEL.NUM_CLASSES = CLASSES
    cfg.MODEL.THINGS = list(range(CLASSES))
    model = build_model(cfg).train()
    items = batch_of(cfg, size, batch)
    if checkpointing:
        checkpoint_activations(model)
    without_state = mock.patch.object(
        torch.random, "fork_rng", lambda *args, **options: nullcontext()
    )  # there is no GPU's
    with without_state, fake_cuda() as gpu, Allocated() as allocated:
        gpu.move(model)
        for parameter in (*model.parameters(), *model.buffers()):
            allocated.count(parameter)
        optimizer = build_optimizer(cfg, model)
        for _ in range(2):
            accumulate_gradients(model, model, items, parts, [], nullcontext(), Tensor.backward)
            clip_gradients(cfg, optimizer)
            optimizer.step()
            optimizer.zero_grad()
    return allocated.peak / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024], help="%(default)s")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16], help="%(default)s")
    parser.add_argument("--accumulate", type=int, default=1, metavar="K", help="parts of each batch (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    args = parser.parse_args()
    rows = []
    for system in args.systems:
        for size in args.sizes:
            for batch in args.batches:
                found = [round(peak(system, size, batch, args.accumulate, saving), 1) for saving in (False, True)]
                row = {"system": system, "size": size, "batch": batch, "parts": args.accumulate}
                row |= {"gib": found[0], "checkpointed": found[1]}
                print(row, flush=True)
                rows.append(row)
    print(tabulate(rows, headers="keys", tablefmt="pipe"))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
