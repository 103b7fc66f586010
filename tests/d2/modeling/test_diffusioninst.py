"""The meta-architecture DiffusionInst on the CPU, with the awkward inputs."""

from dataclasses import replace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

from dformer.d2.modeling.meta_arch.diffusioninst import box_maps
from dformer.utils.errors import UserError
from tests.d2.tiny import tiny_batch, tiny_cfg


def build(*overrides):
    cfg = tiny_cfg("DiffusionInst")
    cfg.merge_from_list(list(overrides))
    torch.manual_seed(0)
    return build_model(cfg)


def image(height, width, count=0, image_id=0, classes=4):
    generator = torch.Generator().manual_seed(image_id)
    instances = Instances((height, width))
    instances.gt_classes = torch.randint(classes, (count,), generator=generator)
    instances.gt_masks = torch.rand(count, height, width, generator=generator) > 0.9
    instances.gt_masks[:, :1, :1] = True
    instances.gt_boxes = BitMasks(instances.gt_masks).get_bounding_boxes()
    pixels = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
    return {"image": pixels, "image_id": image_id, "height": height, "width": width, "instances": instances}


@pytest.mark.parametrize(
    "sizes",
    [
        [(64, 64, 0)],  # no objects
        [(64, 64, 11)],  # more objects than the 8 boxes
        [(64, 64, 3), (33, 90, 0)],  # unequal sizes, one without objects
        [(1, 50, 2), (40, 1, 1)],  # one pixel high, one wide
    ],
)
def test_awkward_batches_train_and_are_segmented(sizes):
    model = build("DIFFUSION.SAMPLING_STEPS", 2)
    batch = [image(*size, image_id=i) for i, size in enumerate(sizes)]
    batch[0]["width"] = 100  # of the result
    losses = model.train()(batch)
    total = sum(losses.values())
    total.backward()
    assert total.isfinite() and [n for n, p in model.named_parameters() if p.grad is None] == []
    for item, result in zip(batch, model.eval()(batch), strict=True):
        found = result["instances"]
        assert found.pred_masks.shape[1:] == found.image_size == (item["height"], item["width"])
        assert found.pred_classes.max() < 4 and (found.scores.diff() <= 0).all()


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_few_classes_train(classes):
    """The published initialisation overwrites kernels and biases of the mask branch, or of boxes, with so few."""
    names = [f"class {k}" for k in range(classes)]
    model = build("MODEL.CLASSES", names, "MODEL.THINGS", list(range(classes))).train()
    parameters = dict(model.named_parameters())
    assert not [n for n, p in parameters.items() if p.min() < -4 and not n.endswith("class_embed.bias")]
    batch = [image(64, 64, 2, classes=classes)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(10):
        model.iteration = 0
        losses.append(sum(model(batch).values()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("steps", [1, 4])
def test_each_image_gets_what_it_gets_alone(steps):
    model = build("DIFFUSION.SAMPLING_STEPS", steps, "DIFFUSION.BOX_RENEWAL", 0.0105).eval()  # renews some boxes
    batch = [image(64, 64, image_id=0), image(64, 50, image_id=1), image(40, 90, image_id=2)]
    together, again = model(batch), model(batch)
    for item, a, b in zip(batch, together, again, strict=True):
        (alone,) = model([item])
        assert torch.equal(a["instances"].pred_masks, b["instances"].pred_masks)
        for field in ("scores", "pred_classes"):
            torch.testing.assert_close(a["instances"].get(field), alone["instances"].get(field), rtol=0, atol=1e-4)
        boxes = [result["instances"].pred_boxes.tensor for result in (a, alone)]
        torch.testing.assert_close(*boxes, rtol=0, atol=1e-2)
    *_, other = model.steps(batch, replace(model.request, seed=1))
    assert not torch.equal(other.results[0]["instances"].scores, together[0]["instances"].scores)


def test_boxes_above_the_threshold_live_on():
    batch = tiny_batch((2,))

    def walks(threshold):
        model = build("DIFFUSION.SAMPLING_STEPS", 3, "DIFFUSION.BOX_RENEWAL", threshold, "DIFFUSION.ETA", 0.0).eval()
        return [step.outputs[0] for step in model.steps(batch)]

    (first, kept), (_, renewed) = walks(0.0), walks(1.0)
    predicted = first.stages[-1].boxes
    distance = [(x.boxes - predicted).abs().mean() for x in (kept, renewed)]
    assert distance[0] < distance[1]


def test_the_last_step_is_run_only_if_asked_for():
    batch, steps = tiny_batch((2,)), {}
    for last in (False, True):
        model = build("DIFFUSION.SAMPLING_STEPS", 3, "TEST.ENSEMBLE_LAST_STEP", last).eval()
        steps[last] = [len(step.outputs[0].found) for step in model.steps(batch)]
        (single,) = model.steps(batch, replace(model.request, steps=1))
        assert len(single.outputs[0].found) == 1
    assert steps == {False: [1, 2], True: [1, 2, 3]}


def test_proposals_are_no_part_of_the_weights():
    model = build().eval()
    for proposals in (1, 30):
        (step,) = model.steps(tiny_batch((1,)), replace(model.request, proposals=proposals))
        (output,) = step.outputs
        assert output.boxes.shape == (proposals, 4) and len(step.results[0]["instances"]) <= proposals


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["INPUT.TASK", "panoptic"], "INPUT.TASK"),
        (["INPUT.TARGET", "masks"], "INPUT.TARGET"),
        (["MODEL.MASK_BRANCH.NORM", "LN"], "MODEL.MASK_BRANCH.NORM"),
    ],
)
def test_what_the_system_cannot_do_is_refused(overrides, key):
    with pytest.raises(UserError, match=key):
        build(*overrides)


def test_other_tasks_are_refused():
    model = build().eval()
    with pytest.raises(UserError, match="panoptic"):
        next(model.steps(tiny_batch((1,)), replace(model.request, tasks=("panoptic",))))


def test_bfloat16_trains_and_infers():
    model, batch = build(), tiny_batch((2, 0))
    with torch.autocast("cpu", torch.bfloat16):
        total = sum(model.train()(batch).values())
        total.backward()
        results = model.eval()(batch)
    assert total.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())
    assert all(result["instances"].pred_boxes.tensor.dtype == torch.float32 for result in results)


def test_noisy_targets_begin_at_the_boxes_and_end_anywhere():
    batch = tiny_batch((3,))
    first, last = (build().noisy_targets(batch, t)[0] for t in (0, 999))
    boxes = box_maps(batch[0]["instances"].gt_boxes.tensor, (64, 64)) > 0
    assert first.shape == (3, 64, 64) and 0 <= first.min() <= first.max() <= 1
    iou = [((x > 0) & boxes).flatten(1).sum(1) / ((x > 0) | boxes).flatten(1).sum(1) for x in (first, last)]
    assert iou[0].min() > 0.6 and iou[1].max() < 0.6
    with pytest.raises(UserError, match="DIFFUSION.TIMESTEPS"):
        build().noisy_targets(batch, 1000)
