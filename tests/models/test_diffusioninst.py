"""DiffusionInst's network and sampler against tensors of the published implementation, and what follows from them."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from torchvision.ops import FeaturePyramidNetwork

from dformer.diffusion.sampler import ddim_step, sample, time_pairs
from dformer.diffusion.schedule import alpha_bar_table, table_schedule
from dformer.layers.roi_align import box_levels, pyramid_cells, roi_align
from dformer.models.diffusioninst import renew_boxes
from dformer.models.mask_branch import MaskBranch
from dformer.models.roi_decoder import RESOLUTION, BoxPrediction, RoIDecoder
from dformer.ops.dynamic_masks import aligned_upsample, dynamic_masks, num_dynamic_parameters
from dformer.postprocess.boxes import instances, suppress, top_detections
from dformer.postprocess.view import View
from dformer.signals.boxes import boxes_to_signal, signal_to_boxes
from dformer.weights.published.convert import from_published
from dformer.weights.published.diffusioninst import DIFFUSIONINST


def part(golden, prefix):
    """The tensors under `prefix` of a reference file."""
    return {name[len(prefix) + 1 :]: x for name, x in golden.items() if name.startswith(f"{prefix}.")}


def extent_of(size):
    height, width = size.tolist()
    return torch.tensor([width, height, width, height], dtype=torch.float32)


def views_of(golden):
    canvas = tuple(golden["canvas"].tolist())
    sizes = zip(golden["image_sizes"].tolist(), golden["output_sizes"].tolist(), strict=True)
    return [View(canvas, tuple(image), tuple(output)) for image, output in sizes]


def check_result(found, mask_features, view, expected):
    """Compare detections, and the instances made of them, with published ones."""
    assert_close(found.boxes, expected["boxes"], rtol=0, atol=1e-4)
    assert_close(found.scores, expected["scores"], rtol=0, atol=1e-5)
    assert torch.equal(found.classes, expected["classes"])
    probability = dynamic_masks(found.kernels, mask_features).sigmoid()
    assert_close(probability, expected["mask_probability"], rtol=0, atol=1e-4)
    result = instances(found, mask_features, view)
    assert_close(result.boxes, expected["result_boxes"], rtol=0, atol=1e-3)
    certain = expected["result_certain"]
    assert torch.equal(result.masks[certain], expected["result_masks"][certain])


def ours(golden, prefix, start):
    """Weights of a reference file under our names, without `start`."""
    published = {prefix + name: x.float() for name, x in part(golden, "state_dict").items()}
    converted, dropped = from_published(published, DIFFUSIONINST)
    assert not dropped and all(name.startswith(start) for name in converted)
    return {name[len(start) :]: x for name, x in converted.items()}


@pytest.mark.golden
def test_fpn(golden_dir):
    golden = load_file(golden_dir / "diffusioninst_fpn.safetensors")
    features = {name: x.float() for name, x in part(golden, "features").items()}
    weights = ours(golden, "backbone.", "head.fpn.")
    fpn = FeaturePyramidNetwork([x.shape[1] for x in features.values()], len(weights["inner_blocks.0.0.bias"]))
    fpn.load_state_dict(weights)
    for level, x in zip(("p2", "p3", "p4", "p5"), fpn(features).values(), strict=True):
        assert_close(x, golden[f"output.{level}"], rtol=0, atol=1e-4)


@pytest.mark.golden
def test_decoder(golden_dir):
    golden = load_file(golden_dir / "diffusioninst_head.safetensors")
    weights = ours(golden, "head.", "head.roi_decoder.")
    stages = len(golden["levels"])
    decoder = RoIDecoder(
        dim=len(weights["time_embedding.0.weight"]) // 4,
        num_stages=stages,
        num_heads=golden["num_heads"].item(),
        ffn_dim=len(weights["stages.0.feed_forward.linear1.bias"]),
        dynamic_dim=len(weights["stages.0.dynamic_conv.norm1.bias"]),
        num_classes=len(weights["stages.0.class_embed.bias"]),
        num_kernel_parameters=len(weights["stages.0.kernel_embed.bias"]),
    )
    decoder.load_state_dict(weights)
    seen = {}
    names = {
        "self_attn": "after_attention",
        "dynamic_conv": "interaction",
        "norm": "after_interaction",
        "feed_forward": "after_feed_forward",
        "time_projection": "scale_shift",
    }
    for k, stage in enumerate(decoder.stages):
        for module, name in names.items():
            keep = seen.__setitem__
            getattr(stage, module).register_forward_hook(lambda m, i, o, key=f"{k}.{name}", keep=keep: keep(key, o))
    maps = [x.float() for x in part(golden, "features").values()]
    cells = pyramid_cells(maps)
    with torch.no_grad():
        predictions = decoder(cells, golden["boxes"], golden["timesteps"])
    pooled = roi_align(cells, golden["boxes"], RESOLUTION)
    assert_close(pooled.mT.unflatten(3, (RESOLUTION, RESOLUTION)), golden["pooled"], rtol=0, atol=1e-4)
    for key, x in seen.items():
        x = torch.cat(x, dim=2)[:, 0] if isinstance(x, tuple) else x
        if (name := f"stage.{key}") in golden:
            assert_close(x, golden[name], rtol=0, atol=5e-4)
    boxes = golden["boxes"]
    for k, prediction in enumerate(predictions):
        assert torch.equal(box_levels(boxes, len(maps)), golden["levels"][k])
        assert_close(prediction.logits, golden["output.logits"][k], rtol=0, atol=1e-4)
        assert_close(prediction.boxes, golden["output.boxes"][k], rtol=0, atol=5e-3)
        assert_close(prediction.kernels, golden["output.kernels"][k], rtol=0, atol=1e-4)
        boxes = prediction.boxes


@pytest.mark.golden
def test_masks(golden_dir):
    golden = load_file(golden_dir / "diffusioninst_mask.safetensors")
    weights = ours(golden, "head.", "head.mask_branch.")
    maps = [x.float() for x in part(golden, "features").values()]
    branch = MaskBranch(
        in_dim=maps[0].shape[1],
        dim=len(weights["refine.0.1.bias"]),
        channels=len(weights["mask_features.bias"]),
        num_convs=len({name.split(".")[1] for name in weights if name.startswith("tower.")}),
        norm="BN",
    ).eval()
    missing, unexpected = branch.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    features = branch(maps)
    assert_close(features, golden["mask_features"], rtol=0, atol=1e-4)
    assert_close(branch.train()(maps), golden["mask_features_in_training"], rtol=0, atol=1e-4)
    for kernels, x, logits in zip(golden["kernels"], golden["mask_features"], golden["mask_logits"], strict=True):
        assert num_dynamic_parameters(len(x)) == kernels.shape[1]
        assert_close(dynamic_masks(kernels, x), logits, rtol=0, atol=1e-4)
    probability = aligned_upsample(golden["mask_logits"][:1].sigmoid(), 4)[0]
    assert_close(probability, golden["mask_probability_at_stride_1"], rtol=0, atol=1e-4)
    for factor, expected in part(golden, "upsampling.output").items():
        assert_close(aligned_upsample(golden["upsampling.input"], int(factor)), expected, rtol=0, atol=1e-5)


@pytest.mark.golden
@pytest.mark.parametrize("steps", [1, 4])
def test_sampler(golden_dir, steps):
    """The published order is: boxes that are kept first, fresh ones last. Ours renews in place."""
    golden = load_file(golden_dir / f"diffusioninst_ddim_{steps}_step.safetensors")
    scale, num_boxes, num_classes = (golden[x].item() for x in ("scale", "num_proposals", "num_classes"))
    views = views_of(golden)
    extent = torch.stack([extent_of(size) for size in golden["image_sizes"]])[:, None]
    target = torch.tensor([0.2, 0.3, 0.7, 0.8])
    order = torch.arange(num_boxes)  # row of ours -> row of theirs
    noise = [golden[f"noise.{i}"] for i in range(2 * steps - 1)]

    def closed_form(boxes, t):
        shares = boxes / extent
        x, y = ((shares[..., k] + shares[..., k + 2]) / 2 for k in (0, 1))
        waves = [6 * torch.sin(3 * k * x + 2 * y + t[:, None] / 1000) - 4 for k in range(1, num_classes + 1)]
        moved = (0.8 * shares + 0.2 * target) * extent
        return BoxPrediction(torch.stack(waves, dim=2), moved, torch.sin(shares @ golden["projection"]))

    def denoise(x_t, t, _):
        boxes = signal_to_boxes(x_t, extent, scale)
        step = taken.index(int(t[0]))
        assert_close(x_t, golden[f"x_t.{step}"][:, order], rtol=0, atol=1e-4)
        assert_close(boxes, golden[f"head_input.{step}"][:, order], rtol=0, atol=1e-3)
        prediction = closed_form(boxes, t)
        x0 = boxes_to_signal(prediction.boxes, extent, scale)
        assert_close(x0, golden[f"x0.{step}"][:, order], rtol=0, atol=1e-4)
        return x0, [prediction]

    def in_our_order(published):
        """Noise (1, M, 4) of the boxes that are kept, in their published order, at their rows here."""
        kept = keep.nonzero()[:, 0]
        placed = torch.zeros(1, num_boxes, 4)
        placed[0, kept[order[kept].argsort()]] = published[0]
        return placed

    def renew(x_t, step, t):
        nonlocal order
        fresh = torch.zeros_like(x_t)
        fresh[0, ~keep] = noise.pop(0)[0]
        renewed = renew_boxes(x_t, step, t, lambda: fresh, threshold=0.5)
        # theirs next: the kept ones in their order, then the fresh ones
        kept, new = keep.nonzero()[:, 0], (~keep).nonzero()[:, 0]
        rows = torch.cat([kept[order[kept].argsort()], new])
        order = rows.argsort()
        return renewed

    first = [noise.pop(0)]
    taken = [int(golden[f"timestep.{k}"][0]) for k in range(steps)]
    times = time_pairs(1000, steps)
    assert [t for t, _ in times] == taken
    schedule, outputs, keep = table_schedule(alpha_bar_table("cosine", 1000)), [], None

    def step_on(x_t, x0, alpha_bar_t, alpha_bar_next, draw_noise):
        return ddim_step(x_t, x0, alpha_bar_t, alpha_bar_next, lambda: in_our_order(noise.pop(0)), eta=1.0)

    for k, step in enumerate(sample(denoise, first.pop, times, schedule, step_on, renew)):
        outputs += step.output
        keep = step.output[-1].logits.sigmoid().amax(2)[0] > 0.5
        if f"keep.{k}" in golden:
            assert torch.equal(keep, golden[f"keep.{k}"][order])
    assert not noise
    for b, view in enumerate(views):
        found = [top_detections(*(x[b] for x in output), count=num_boxes) for output in outputs]
        for k, expected in enumerate(found[:-1]):
            assert_close(expected.scores, golden[f"ensemble.{k}.scores"].sort(descending=True)[0], rtol=0, atol=1e-5)
        joined = suppress(found[:-1] or found, threshold=0.5, count=1000)
        check_result(joined, golden["mask_features"][b], view, part(golden, str(b)))


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 7, 8, 80])
def test_the_initial_bias_of_classes_touches_nothing_else(num_classes):
    torch.manual_seed(0)
    decoder = RoIDecoder(
        dim=16, num_stages=2, num_heads=2, ffn_dim=32, dynamic_dim=4, num_classes=num_classes, num_kernel_parameters=33
    )
    for name, parameter in decoder.named_parameters():
        is_prior = name.endswith("class_embed.bias")
        assert is_prior == bool((parameter < -4).all()), name


def test_memory_of_dynamic_layers_is_not_kept_for_the_gradient():
    saved = []
    decoder = RoIDecoder(
        dim=32, num_stages=2, num_heads=2, ffn_dim=32, dynamic_dim=16, num_classes=3, num_kernel_parameters=33
    )
    cells = pyramid_cells([torch.randn(1, 32, 32 // s, 32 // s) for s in (1, 2, 4, 8)])
    boxes = torch.tensor([[[8.0, 8.0, 40.0, 60.0]] * 10])
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        predictions = decoder(cells, boxes, torch.tensor([5]))
    assert 2 * 32 * 16 * 10 not in saved
    sum(x.sum() for x in predictions[-1]).backward()
    assert decoder.stages[0].dynamic_conv.dynamic_layer.weight.grad.abs().sum() > 0
