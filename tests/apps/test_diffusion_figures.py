"""What is shown of the diffusion is what happens in the model."""

import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from dformer.apps.diffusion_figures import annotated_objects, corrupted, denoised
from dformer.d2.data import register_shapes
from dformer.d2.engine.predictor import Predictor
from dformer.diffusion.schedule import alpha_bar_schedule
from dformer.utils.errors import UserError
from dformer.visualize.files import VideoReader
from tests import load_script
from tests.d2.tiny import tiny_cfg

shapes_script = load_script("datasets/shapes.py")
tool = load_script("tools/visualize_diffusion.py")

IMAGE = np.random.default_rng(0).integers(0, 256, (90, 128, 3), np.uint8)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return Predictor(trained(tmp_path_factory.mktemp("weights")))


def trained(folder, meta_architecture: str = "DFormer"):
    cfg = tiny_cfg(meta_architecture)
    cfg.TEST.TASKS = ("panoptic",)
    cfg.TEST.OBJECT_THRESHOLD = cfg.TEST.OVERLAP_THRESHOLD = 0.0
    cfg.DIFFUSION.SAMPLING_STEPS = 3
    cfg.MODEL.WEIGHTS = str(folder / f"{meta_architecture}.pth")
    torch.manual_seed(0)
    model = build_model(cfg)
    model.head.mask_decoder.class_embed.bias.data[-1] = -10  # no query finds nothing
    torch.save({"model": model.state_dict(), "config": cfg.dump()}, cfg.MODEL.WEIGHTS)
    return cfg


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    shapes_script.generate(root, shapes_script.Parameters(train=1, val=2, size=64), progress=False)
    register_shapes(root, "followed_shapes")
    yield "followed_shapes_val"
    for split in ("train", "val"):
        DatasetCatalog.remove(f"followed_shapes_{split}")
        MetadataCatalog.remove(f"followed_shapes_{split}")


def test_the_regions_shown_are_those_that_the_layers_attend_to(predictor):
    """The masks that each layer is called with, cut to the image and enlarged to the picture cell by cell."""
    called = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: called.append(inputs[-1][0]))
        for layer in predictor.model.head.mask_decoder.layers
    ]
    _, steps, colors = denoised(predictor, IMAGE, "panoptic", most=8)
    for hook in hooks:
        hook.remove()
    assert len(steps) == 3 and len(called) == 3 * 2 and len(colors) == 8
    # 90 x 128 becomes 64 x 91 on a canvas of 64 x 96; levels of stride 32 and 16
    layers = [layer for step in steps for layer in step.layers]
    for k, (layer, mask) in enumerate(zip(layers, called, strict=True)):
        stride = (32, 16)[k % 2]
        cells = mask.unflatten(1, (64 // stride, 96 // stride)).numpy()
        rows = (np.arange(90) * 64 // 90) // stride
        columns = (np.arange(128) * 91 // 128) // stride
        expected = {cell.tobytes() for cell in cells[:, rows][:, :, columns]}
        assert {region.tobytes() for region in layer.attended} == expected


def test_the_last_masks_are_those_of_the_result(predictor):
    picture, steps, _ = denoised(predictor, IMAGE, "panoptic", most=8)
    segment_map, infos = predictor([IMAGE])[0]["panoptic_seg"]
    assert (picture == IMAGE).all() and [step.t for step in steps] == [999, 665, 332]
    covered = steps[-1].layers[-1].masks.any(axis=0)
    assert infos and covered[segment_map.numpy() > 0].mean() > 0.98, "all but for one resizing instead of two"
    names = {text.rsplit(" ", 1)[0] for text in steps[-1].layers[-1].texts}
    assert {predictor.class_names[info["category_id"]] for info in infos} <= names
    assert ((steps[0].noisy >= 0) & (steps[0].noisy <= 1)).all() and 0.4 < steps[0].noisy.mean() < 0.6


def test_corrupted_masks_are_the_forward_process():
    cfg = tiny_cfg()
    cfg.DIFFUSION.MASK_STRIDE = 2
    masks = np.zeros((2, 64, 64), bool)
    masks[0, :32] = True
    at = dict(zip([0, 50, 51, 999], corrupted(cfg, masks, [0, 50, 51, 999]), strict=True))
    assert at[0].shape == (2, 32, 32) and np.abs(at[0] - masks[:, ::2, ::2]).max() < 0.5
    assert np.corrcoef(at[999].ravel(), masks[:, ::2, ::2].ravel())[0, 1] < 0.1
    # x_t = sqrt(a) x_0 + sqrt(1 - a) eps with the same eps at all times, where it is not clamped
    alpha_bar = alpha_bar_schedule(cfg.DIFFUSION.SCHEDULE, 1000).numpy()
    free = ((at[50] > 0) & (at[50] < 1) & (at[51] > 0) & (at[51] < 1)).nonzero()
    x0 = np.where(masks[:, ::2, ::2], 0.1, -0.1)[free]
    noise = [(0.1 * (2 * at[t][free] - 1) - np.sqrt(alpha_bar[t]) * x0) / np.sqrt(1 - alpha_bar[t]) for t in (50, 51)]
    assert len(free[0]) > 100
    np.testing.assert_allclose(*noise, atol=1e-4)
    with pytest.raises(UserError, match="times are 0 to 999"):
        corrupted(cfg, masks, [1000])


def test_the_largest_objects_are_shown(shapes):
    objects = annotated_objects(shapes, 0, "panoptic", most=3)
    areas = objects.masks.sum(axis=(1, 2))
    assert len(objects.texts) == len(objects.colors) == 3 and (np.diff(areas) <= 0).all()
    everything = annotated_objects(shapes, 0, "panoptic", most=99)
    assert everything.masks.any(axis=0).mean() > 0.9 and (everything.masks.sum(axis=0) <= 1).all()


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["visualize_diffusion.py", *arguments])
    try:
        tool.main()
    except SystemExit as end:
        return end.code
    return 0


def test_the_tool_writes_what_the_suffix_says(monkeypatch, shapes, tmp_path):
    weights = trained(tmp_path).MODEL.WEIGHTS
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    outputs = [str(tmp_path / f"steps.{suffix}") for suffix in ("png", "webp", "gif", "mp4")]
    image = ["--weights", weights, "--input", str(tmp_path / "a.png"), "--steps", "2", "--masks", "3"]
    assert run(monkeypatch, *image, "--output", *outputs) == 0
    assert Image.open(outputs[0]).size == Image.open(outputs[1]).size
    with Image.open(outputs[2]) as gif, VideoReader(outputs[3]) as video:
        assert gif.n_frames == len(list(video)) == 2 * 2
    data = ["--weights", weights, "--dataset", shapes, "--index", "1"]
    assert run(monkeypatch, *data, "--times", "0", "30", "999", "--output", str(tmp_path / "noise.gif")) == 0
    with Image.open(tmp_path / "noise.gif") as gif:
        assert gif.n_frames == 3
    assert run(monkeypatch, *data, "--output", str(tmp_path / "data.png")) == 0 and (tmp_path / "data.png").exists()


def test_what_cannot_be_shown_is_told(monkeypatch, tmp_path, capsys, shapes):
    weights = trained(tmp_path).MODEL.WEIGHTS
    out = str(tmp_path / "a.png")
    Image.fromarray(IMAGE).save(out)
    for arguments, says in [
        (["--weights", trained(tmp_path, "Mask2Former").MODEL.WEIGHTS, "--input", out], "Mask2Former has no diffusion"),
        (["--weights", weights, "--input", out, "--times"], "name a data set"),
        (["--weights", weights, "--dataset", shapes, "--index", "2"], "has the images 0 to 1"),
        (["--weights", weights, "--dataset", shapes, "--times", "-1"], "times are 0 to 999, got -1"),
        (["--weights", weights, "--input", out, "--output", str(tmp_path / "a.tga")], "a.tga: the suffix"),
        (["--weights", weights, "--input", out, "--masks", "0"], "--masks must be 1 or more"),
    ]:
        assert run(monkeypatch, *arguments, *([] if "--output" in arguments else ["--output", out])) == 2
        assert says.replace("999,", "999 (DIFFUSION.TIMESTEPS),") in capsys.readouterr().err
