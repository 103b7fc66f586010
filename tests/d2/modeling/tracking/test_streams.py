"""Videos by the Python API: any way to follow, the same as they come and at constant memory."""

import gc
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from scipy.stats import theilslopes

from dformer.d2.engine.predictor import Predictor
from dformer.d2.modeling.tracking import TRACKERS
from dformer.utils.errors import UserError
from dformer.visualize.files import VideoWriter
from tests.d2.systems import pix2seqd_cfg
from tests.d2.tiny import random_model

ASKED = {"tracker": "hints", "task": "panoptic"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    opts = ["DIFFUSION.ASSIGNMENT", "denoising"]
    model = Predictor(random_model(tmp_path_factory.mktemp("weights") / "model.pth", opts=opts))
    model.model.things[:] = True  # whatever it finds is to be followed
    return model


@pytest.fixture(scope="module")
def of_past_maps(tmp_path_factory):
    """A model whose label maps are as random as its weights."""
    cfg = pix2seqd_cfg()
    cfg.MODEL.PIX2SEQD.PAST_MAPS, cfg.MODEL.WEIGHTS = 2, str(tmp_path_factory.mktemp("weights") / "model.pth")
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.normal_(model.head.decoder.conv_out.weight, std=2.0)
    torch.save({"model": model.state_dict(), "config": cfg.dump()}, cfg.MODEL.WEIGHTS)
    model = Predictor(cfg)
    model.model.things[:] = True
    return model


def frames(count, side=64):
    rng = np.random.default_rng(0)
    for t in range(count):
        frame = rng.integers(0, 90, (side, side, 3), np.uint8)
        frame[10:30, t % 40 : t % 40 + 20] = 250
        yield frame


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_stream_has_the_results_of_the_file(model, of_past_maps, tmp_path, tracker):
    model = of_past_maps if tracker == "past_maps" else model
    with VideoWriter(tmp_path / "a.avi", fps=10) as video:
        for frame in frames(4):
            video.write(frame)
    offline = list(model.video(tmp_path / "a.avi", batch=4, task="panoptic", tracker=tracker))
    state = None
    for expected in offline:
        (result,), state = model.track([expected.image], state, task="panoptic", tracker=tracker)
        assert result.tracks == expected.tracks and any(result.tracks)
        assert (result.masks == expected.masks).all()
        assert result.scores == pytest.approx(expected.scores, rel=1e-5)


def test_label_maps_and_merged_answers_of_videos(model):
    read = list(frames(2))
    results, state = model.track(read, task="semantic")
    assert state is None and not any(results[0].tracks)
    results, state = model.track(read, samples=2)
    things = [s for s in results[1].segments if s.is_thing]
    assert all(s.track for s in things) and results[1].agreement is not None


def test_an_unknown_way_is_named(model):
    with pytest.raises(UserError, match="hint.*hints"):
        model.track(list(frames(1)), tracker="hint")


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_thousand_frames_take_constant_memory(model, of_past_maps, tracker):
    """The slopes of what Python and NumPy hold and of the process, from frame 200 on; a frame's mask is 4096 bytes."""
    model = of_past_maps if tracker == "past_maps" else model
    state, held = None, []
    tracemalloc.start()
    for number, frame in enumerate(frames(1000)):
        _, state = model.track([frame], state, task="panoptic", tracker=tracker)
        if number >= 200 and number % 50 == 0:
            gc.collect()
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
            held.append((number, tracemalloc.get_traced_memory()[0], resident))
    tracemalloc.stop()
    numbers, *sizes = zip(*held, strict=True)
    slopes = [theilslopes(size, numbers).slope for size in sizes]  # an allocator's single step is no slope
    print(f"{tracker}: {slopes[0]:.0f} bytes a frame, of the process {slopes[1]:.0f}")
    assert slopes[0] < 100 and slopes[1] < 1000
