"""What is shown of the diffusion is what happens in the model."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from dformer.apps import shapes as shapes_data
from dformer.apps.diffusion_figures import TIMES, annotated_objects, default_times, follow_denoising, noised
from dformer.d2.data import register_shapes
from dformer.d2.engine.predictor import Predictor
from dformer.visualize.files import VideoReader
from tests import run_script
from tests.d2.tiny import random_model

IMAGE = np.random.default_rng(0).integers(0, 256, (90, 128, 3), np.uint8)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    cfg = random_model(tmp_path_factory.mktemp("weights") / "model.pth")
    cfg.DIFFUSION.SAMPLING_STEPS = 3
    return Predictor(cfg)


@pytest.fixture
def shapes(tmp_path, empty_catalogs) -> str:
    shapes_data.generate(tmp_path, shapes_data.Parameters(train=1, val=2, size=64), progress=False)
    register_shapes(tmp_path)
    return "shapes_val"


def test_the_regions_shown_are_those_that_the_layers_attend_to(predictor):
    """The masks that each layer is called with, cut to the image and enlarged to the picture cell by cell."""
    called = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: called.append(inputs[-1][0]))
        for layer in predictor.model.head.mask_decoder.layers
    ]
    _, steps, colors = follow_denoising(predictor, IMAGE, "panoptic", max_rows=8)
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
    picture, steps, _ = follow_denoising(predictor, IMAGE, "panoptic", max_rows=8)
    found = predictor(IMAGE)
    assert (picture == IMAGE).all() and [step.t for step in steps] == [999, 665, 332]
    covered = steps[-1].layers[-1].masks.any(axis=0)
    assert found.names and covered[found.panoptic > 0].mean() > 0.98, "all but for one resizing instead of two"
    names = {text.rsplit(" ", 1)[0] for text in steps[-1].layers[-1].texts}
    assert set(found.names) <= names
    assert ((steps[0].noisy >= 0) & (steps[0].noisy <= 1)).all() and 0.4 < steps[0].noisy.mean() < 0.6


def test_objects_are_noised_as_in_training(predictor, shapes):
    objects = annotated_objects(shapes, 0, "panoptic", max_rows=3)
    times = default_times(predictor.model)
    assert times == [0, 10, 25, 50, 100, 200, 500, 999] and len(times) == len(TIMES)
    noisy = [noised(predictor.model, objects, t) for t in times]
    truth = objects.masks[:, ::4, ::4].astype(float)
    assert all(maps.shape == truth.shape and 0 <= maps.min() <= maps.max() <= 1 for maps in noisy)
    correlation = [np.corrcoef(maps.ravel(), truth.ravel())[0, 1] for maps in noisy]
    assert correlation[0] > 0.8 > 0.2 > correlation[-1] and correlation[1] > correlation[4] > correlation[-1]


def test_the_largest_objects_are_shown(shapes):
    objects = annotated_objects(shapes, 0, "panoptic", max_rows=3)
    areas = objects.masks.sum(axis=(1, 2))
    assert len(objects.texts) == len(objects.colors) == 3 and (np.diff(areas) <= 0).all()
    everything = annotated_objects(shapes, 0, "panoptic", max_rows=99)
    assert everything.masks.any(axis=0).mean() > 0.9 and (everything.masks.sum(axis=0) <= 1).all()


run = partial(run_script, "tools/visualize_diffusion.py")


def test_the_tool_writes_what_the_suffix_says(shapes, tmp_path):
    weights = random_model(tmp_path / "model.pth").MODEL.WEIGHTS
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    outputs = [tmp_path / f"steps.{suffix}" for suffix in ("png", "webp", "gif", "mp4")]
    image = ["--weights", weights, "--input", tmp_path / "a.png", "--steps", "2", "--masks", "3"]
    assert run(*image, "--output", *outputs) == 0
    assert Image.open(outputs[0]).size == Image.open(outputs[1]).size
    with Image.open(outputs[2]) as gif, VideoReader(outputs[3]) as video:
        assert gif.n_frames == len(list(video)) == 2 * 2
    data = ["--weights", weights, "--dataset", shapes, "--index", "1"]
    assert run(*data, "--times", "0", "30", "999", "--output", tmp_path / "noise.gif") == 0
    with Image.open(tmp_path / "noise.gif") as gif:
        assert gif.n_frames == 3
    assert run(*data, "--output", tmp_path / "data.png") == 0 and (tmp_path / "data.png").exists()


def test_what_cannot_be_shown_is_refused(tmp_path, capsys, shapes):
    weights, other = (random_model(tmp_path / f"{m}.pth", m).MODEL.WEIGHTS for m in ("DFormer", "Mask2Former"))
    out = tmp_path / "a.png"
    Image.fromarray(IMAGE).save(out)
    for arguments, name in [
        (["--weights", other, "--input", out], "Mask2Former"),
        (["--weights", weights, "--input", out, "--times"], "--dataset"),
        (["--weights", weights, "--dataset", shapes, "--index", "2"], "--index 2"),
        (["--weights", weights, "--dataset", shapes, "--times", "-1"], "DIFFUSION.TIMESTEPS"),
        (["--weights", weights, "--input", out, "--output", tmp_path / "a.tga"], "a.tga"),
        (["--weights", weights, "--input", out, "--masks", "0"], "--masks"),
    ]:
        assert run(*arguments, *([] if "--output" in arguments else ["--output", out])) == 2
        assert name in capsys.readouterr().err
