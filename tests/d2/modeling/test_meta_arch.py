"""Each meta-architecture end to end on the CPU, with the awkward inputs."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import Instances

from dformer.d2.modeling.meta_arch import Request
from dformer.diffusion.schedule import alpha_bar_table
from dformer.utils.errors import UserError
from tests.d2.tiny import tiny_batch, tiny_cfg

both = pytest.mark.parametrize("system", ["DFormer", "Mask2Former"])


def build(system, **overrides):
    cfg = tiny_cfg(system)
    cfg.merge_from_list([word for key, value in overrides.items() for word in (key.replace("__", "."), value)])
    torch.manual_seed(0)
    return build_model(cfg)


def image(height, width, count=0, image_id=0):
    generator = torch.Generator().manual_seed(image_id)
    instances = Instances((height, width))
    instances.gt_classes = torch.randint(7, (count,), generator=generator)
    instances.gt_masks = torch.rand(count, height, width, generator=generator) > 0.5
    pixels = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
    return {"image": pixels, "image_id": image_id, "height": height, "width": width, "instances": instances}


@pytest.mark.parametrize("system, assignment", [("DFormer", "free"), ("DFormer", "denoising"), ("Mask2Former", "free")])
@pytest.mark.parametrize(
    "sizes",
    [
        [(64, 64, 0)],  # no objects
        [(64, 64, 11)],  # more objects than the 8 queries
        [(64, 64, 3), (33, 90, 0)],  # unequal sizes, one without objects
        [(1, 50, 2), (40, 1, 1)],  # one pixel high, one wide
    ],
)
def test_awkward_batches_train_and_are_segmented(system, assignment, sizes):
    model = build(system, DIFFUSION__ASSIGNMENT=assignment, DIFFUSION__SAMPLING_STEPS=2)
    batch = [image(*size, image_id=i) for i, size in enumerate(sizes)]
    batch[0]["width"] = 100  # of the result
    losses = model.train()(batch)
    total = sum(losses.values())
    total.backward()
    assert total.isfinite() and [n for n, p in model.named_parameters() if p.grad is None] == []
    for item, result in zip(batch, model.eval()(batch), strict=True):
        size = item["height"], item["width"]
        assert result["sem_seg"].shape == (7, *size)
        segment_map, segments = result["panoptic_seg"]
        assert segment_map.shape == size and {s["id"] for s in segments} == set(segment_map.unique().tolist()) - {0}
        assert result["instances"].pred_masks.shape[1:] == size


@both
def test_an_object_smaller_than_a_stride_is_learned_from(system):
    batch = tiny_batch((1,))
    batch[0]["instances"].gt_masks[:] = False
    batch[0]["instances"].gt_masks[0, 30, 30] = True
    losses = build(system).train()(batch)
    assert all(loss.isfinite() for loss in losses.values()) and losses["loss_dice"] > 0


@pytest.mark.parametrize("steps, assignment", [(1, "free"), (4, "free"), (4, "denoising")])
def test_same_seed_same_output_whatever_the_batch(steps, assignment):
    model = build("DFormer", DIFFUSION__SAMPLING_STEPS=steps, DIFFUSION__ASSIGNMENT=assignment).eval()
    batch = [image(64, 64, image_id=0), image(64, 64, image_id=1), image(40, 90, image_id=2)]
    together, again = model(batch), model(batch)
    for item, a, b in zip(batch, together, again, strict=True):
        (alone,) = model([item])
        assert torch.equal(a["sem_seg"], b["sem_seg"])
        torch.testing.assert_close(a["sem_seg"], alone["sem_seg"], rtol=0, atol=1e-4)
    *_, other = model.steps(batch, replace(model.request, seed=1))
    assert not torch.equal(other.results[0]["sem_seg"], together[0]["sem_seg"])


@both
def test_the_last_step_is_the_result(system):
    model = build(system, DIFFUSION__SAMPLING_STEPS=3).eval()
    batch = [image(64, 64, image_id=0), image(40, 90, image_id=1), image(64, 64, image_id=2)]  # two padded sizes
    steps = list(model.steps(batch))
    assert [step.t for step in steps] == ([999, 665, 332] if system == "DFormer" else [None])
    for a, b in zip(steps[-1].results, model(batch), strict=True):
        assert torch.equal(a["sem_seg"], b["sem_seg"])
    for step in steps:
        assert [result["sem_seg"].shape[1:] for result in step.results] == [(64, 64), (40, 90), (64, 64)]
        for output, canvas in zip(step.outputs, [(16, 16), (16, 24), (16, 16)], strict=True):
            if system == "DFormer":
                assert output.noisy.shape == (8, *canvas) and 0 <= output.noisy.min() <= output.noisy.max() <= 1
            else:
                assert output.noisy is None


@both
def test_a_request_changes_nothing_for_the_next(system):
    model = build(system).eval()
    batch = tiny_batch((1,))
    before = model(batch)[0]
    asked = Request(("semantic",), steps=2, seed=5, proposals=3, object_threshold=0.1, overlap_threshold=0.2)
    *_, step = model.steps(batch, asked)
    (output,) = step.outputs
    assert list(step.results[0]) == ["sem_seg"] and output.predictions[-1].logits.shape[1] == 3
    after = model(batch)[0]
    assert list(after) == list(before) and torch.equal(after["sem_seg"], before["sem_seg"])


@pytest.mark.parametrize(
    ("system", "asked", "key"),
    [
        ("DFormer", {"tasks": ("video",)}, "video"),
        ("DFormer", {"steps": 0}, "DIFFUSION.SAMPLING_STEPS"),
        ("DFormer", {"steps": 1001}, "DIFFUSION.SAMPLING_STEPS"),
        ("DFormer", {"seed": -1}, "DIFFUSION.SEED"),
        ("Mask2Former", {"proposals": 9}, "MODEL.MASK_DECODER.NUM_QUERIES"),
        ("Mask2Former", {"object_threshold": float("nan")}, "TEST.OBJECT_THRESHOLD"),
    ],
)
def test_what_a_system_does_not_know_is_refused(system, asked, key):
    model = build(system).eval()
    with pytest.raises(UserError, match=key):
        next(model.steps(tiny_batch((1,)), replace(model.request, **asked)))


def test_noisy_targets_are_the_forward_process():
    """x_t = sqrt(a) x_0 + sqrt(1 - a) eps with the same eps at all times, where it is not clamped."""
    model = build("DFormer", DIFFUSION__MASK_STRIDE=2)
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :32] = True
    batch = [{"instances": Instances((64, 64), gt_masks=masks)}]
    at = {t: model.noisy_targets(batch, t)[0] for t in (0, 50, 51, 999)}
    truth = masks[:, ::2, ::2].float()
    assert at[0].shape == (2, 32, 32) and (at[0] - truth).abs().max() < 0.5
    assert torch.corrcoef(torch.stack([at[999].flatten(), truth.flatten()]))[0, 1] < 0.1
    free = (at[50] > 0) & (at[50] < 1) & (at[51] > 0) & (at[51] < 1)
    alpha_bar = alpha_bar_table("cosine", 1000)
    noise = [
        (0.1 * (2 * at[t] - 1) - alpha_bar[t] ** 0.5 * 0.1 * (2 * truth - 1))[free] / (1 - alpha_bar[t]) ** 0.5
        for t in (50, 51)
    ]
    assert free.sum() > 100
    torch.testing.assert_close(*noise, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="DIFFUSION.TIMESTEPS"):
        model.noisy_targets(batch, 1000)


def test_training_noise_depends_on_seed_iteration_and_image_alone():
    model = build("DFormer").train()
    first, second = tiny_batch((2, 3))
    losses = model([first, second])
    moved_on = model([first, second])
    model.iteration = 0
    assert all(torch.equal(loss, losses[key]) for key, loss in model([first, second]).items())
    assert not torch.equal(moved_on["loss_mask"], losses["loss_mask"])
    model.iteration = 0
    swapped = model([second, first])
    torch.testing.assert_close(sum(swapped.values()), sum(losses.values()))


def test_hints_become_the_models_own_as_training_goes_on():
    batch, losses = tiny_batch((2,)), []
    for max_iter in (1, 1_000_000):  # the only iteration, and the first of many
        model = build("DFormer", DIFFUSION__ASSIGNMENT="denoising", SOLVER__MAX_ITER=max_iter).train()
        with torch.no_grad():
            model.head.mask_decoder.class_embed.bias[-1] = 50  # by itself, the model finds nothing
        losses.append(model(batch))
        assert model.own_share == 1 / max_iter
    assert not torch.equal(losses[0]["loss_mask"], losses[1]["loss_mask"])  # without hints, and with true ones


@both
def test_bfloat16_trains_and_infers(system):
    model = build(system)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(tiny_batch((2, 0)))
        sum(losses.values()).backward()
        results = model.eval()(tiny_batch((2, 0)))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert results[0]["sem_seg"].isfinite().all()


@pytest.mark.parametrize(
    "task, key", [("panoptic", "panoptic_seg"), ("instance", "instances"), ("semantic", "sem_seg")]
)
def test_only_what_is_asked_for(task, key):
    (result,) = build("DFormer", TEST__TASKS=(task,)).eval()(tiny_batch((1,)))
    assert list(result) == [key]


@both
def test_semantic_scores_may_be_resized_after_the_masks_are_weighted(system):
    """As published for semantic segmentation: at the size of the image, then resized to that of the result."""
    model = build(system, TEST__SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE=False, TEST__TASKS=("semantic",)).eval()
    item = image(40, 60)
    (scores,) = (result["sem_seg"] for result in model([item]))
    (larger,) = (result["sem_seg"] for result in model([{**item, "height": 90, "width": 70}]))
    expected = F.interpolate(scores[None], (90, 70), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(larger, expected)
    (masks_first,) = build(system, TEST__TASKS=("semantic",)).eval()([{**item, "height": 90, "width": 70}])
    assert 0 < (masks_first["sem_seg"] - expected).abs().max() < 0.1


def test_a_few_steps_on_one_image_bring_the_loss_down():
    model = build("DFormer").train()
    batch = tiny_batch((2,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(30):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert sum(totals[-5:]) < 0.7 * sum(totals[:5])


def test_pixel_decoders_by_name():
    for name in ("FPNPixelDecoder", "MSDeformAttnPixelDecoder"):
        model = build("DFormer", MODEL__PIXEL_DECODER__NAME=name)
        assert type(model.head.pixel_decoder).__name__ == name
    with pytest.raises(UserError, match="MODEL.PIXEL_DECODER.NAME"):
        build("DFormer", MODEL__PIXEL_DECODER__NAME="NoSuchDecoder")


@both
def test_classes_weigh_what_the_config_says(system):
    def loss_ce(weights):
        model = build(system, MODEL__CRITERION__CLASS_WEIGHTS=weights).train()
        return model.losses([image(64, 64, 3)])["loss_ce"].item()

    assert loss_ce((1.0,) * 7) == loss_ce(()) != pytest.approx(loss_ce((5.0,) * 7), rel=0.01)
    with pytest.raises(UserError, match="CLASS_WEIGHTS"):
        loss_ce((1.0, 5.0))
