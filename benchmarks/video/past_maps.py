#!/usr/bin/env python3
"""How many things keep the ids of true past maps, on Moving Shapes, in a Pix2Seq-D that was trained on clips.

python datasets/moving_shapes.py
python -m benchmarks.video.past_maps WEIGHTS [--frames 80] [--steps 8] [--json FILE]

Frames are drawn from the clips, each with the true maps of the frames before. Of the things that are in one of these,
in percent: "pixels" that have the right id, and "things" most of whose pixels have it (without those of fewer than
MIN_PIXELS cells of the label map). "kept": the id of the past. "permuted": the same where the ids of the past maps are
permuted. "without": where no past map is given, which is chance. "class right": of the same pixels, with the past.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dformer.d2.checkpoint.zoo import inference_config
from dformer.d2.data import build_train_loader
from dformer.d2.engine.predictor import Predictor
from dformer.d2.modeling.meta_arch import Pix2SeqD
from dformer.diffusion.sampler import last_step
from dformer.models.pix2seqd import ImageMemory
from dformer.utils import rng
from dformer.utils.errors import UserError, exit_on_user_error

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import environment, parser, report  # noqa: E402

MIN_PIXELS = 20
OPTS = ["DATASETS.TRAIN", "('moving_shapes',)", "INPUT.RANDOM_FLIP", "none", "MODEL.PIX2SEQD.PAST_DROPOUT", "0.0"]
OPTS += ["DATALOADER.NUM_WORKERS", "0", "SEED", "0"]


def label_maps(model: Pix2SeqD, batch: list[dict[str, Any]], canvas: torch.Size) -> tuple[Tensor, Tensor]:
    """Return the true labels (B, 2, h, w) of frames, and those of the frames before, (B, F, 2, h, w)."""
    drawn = [model.draw(item, rng.generator(model.device, k), canvas) for k, item in enumerate(batch)]
    return torch.stack([labels for _, _, labels, _ in drawn]), torch.stack([past for *_, past in drawn])


def predict(model: Pix2SeqD, memory: ImageMemory, noise: Tensor, past: Tensor | None, steps: int) -> Tensor:
    """Return the predicted labels (B, 2, h, w) of encoded frames."""
    sampled = model.head.sample(memory, lambda: noise, steps, model.time_difference, past=past)
    return model.head.to_labels(last_step(sampled).x0)


def things_before(model: Pix2SeqD, labels: Tensor, past: Tensor) -> Tensor:
    """Return where (B, h, w) bool the things are that have their id in a past map."""
    is_thing = torch.cat([model.things.new_zeros(1), model.things])[labels[:, 0]]
    was_there = [torch.isin(ids, before.unique()) for ids, before in zip(labels[:, 1], past[:, :, 1], strict=True)]
    return is_thing & torch.stack(was_there)


def shares(right: list[Tensor]) -> dict[str, float]:
    """Return the parts, in percent, of the pixels and of the things: `right` (pixels of a thing,) bool, for each."""
    large = [x for x in right if len(x) >= MIN_PIXELS]
    of_things = sum(x.float().mean().item() > 0.5 for x in large) / max(len(large), 1)
    return {"pixels": round(100 * torch.cat(right).float().mean().item(), 1), "things": round(100 * of_things, 1)}


@exit_on_user_error
@torch.no_grad()
def main() -> None:
    options = parser(__doc__)
    options.add_argument("weights")
    options.add_argument("--frames", type=int, default=80)
    options.add_argument("--steps", type=int, default=8)
    args = options.parse_args()
    cfg = inference_config(args.weights, None, OPTS)
    model = Predictor(cfg).model
    if not isinstance(model, Pix2SeqD) or not model.head.past_maps:
        raise UserError(f"{args.weights} takes no past maps; train with MODEL.PIX2SEQD.PAST_MAPS")
    permutation = torch.randperm(model.head.num_labels[1] - 1, generator=rng.generator(model.device, 1)) + 1
    permutation = torch.cat([permutation.new_zeros(1), permutation])
    right: dict[str, list[Tensor]] = {"kept": [], "permuted": [], "without": [], "class right": []}
    loader = iter(build_train_loader(cfg))
    for _ in range(args.frames // cfg.SOLVER.IMS_PER_BATCH):
        batch = next(loader)
        images = model.preprocess(batch).tensor
        memory, canvas = model.encode(images), images.shape[-2:]
        labels, past = label_maps(model, batch, canvas)
        permuted = torch.stack([past[:, :, 0], permutation[past[:, :, 1]]], dim=2)
        generators = [rng.generator(model.device, k) for k in range(len(batch))]
        noise = rng.normal(generators, model.noise_shape(canvas, model.request))
        given, other, none = (predict(model, memory, noise, maps, args.steps) for maps in (past, permuted, None))
        where = things_before(model, labels, past)
        right_pixels = {
            "kept": given[:, 1] == labels[:, 1],
            "permuted": other[:, 1] == permutation[labels[:, 1]],
            "without": none[:, 1] == labels[:, 1],
            "class right": given[:, 0] == labels[:, 0],
        }
        for b, ids in enumerate(labels[:, 1]):
            for i in ids[where[b]].unique():
                for key, pixels in right_pixels.items():
                    right[key].append(pixels[b][where[b] & (ids == i)])
    count = sum(len(x) >= MIN_PIXELS for x in right["kept"])
    rows = [{"ids": key, **shares(pixels)} for key, pixels in right.items()]
    report(rows, {**environment("cpu"), "frames": args.frames, "steps": args.steps, "things": count}, args.json)


if __name__ == "__main__":
    main()
