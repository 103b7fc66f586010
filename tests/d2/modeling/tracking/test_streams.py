"""Videos by the Python API: any way to follow, the same as they come and at constant memory."""

import gc
import tracemalloc

import numpy as np
import pytest

from dformer.d2.engine.predictor import Predictor
from dformer.utils.errors import UserError
from dformer.visualize.files import VideoWriter
from tests.d2.tiny import random_model

ASKED = {"tracker": "hints", "task": "panoptic"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    opts = ["DIFFUSION.ASSIGNMENT", "denoising"]
    model = Predictor(random_model(tmp_path_factory.mktemp("weights") / "model.pth", opts=opts))
    model.model.things[:] = True  # whatever it finds is to be followed
    return model


def frames(count, side=64):
    rng = np.random.default_rng(0)
    for t in range(count):
        frame = rng.integers(0, 90, (side, side, 3), np.uint8)
        frame[10:30, t % 40 : t % 40 + 20] = 250
        yield frame


@pytest.mark.parametrize("tracker", ["association", "queries", "hints"])
def test_a_stream_has_the_results_of_the_file(model, tmp_path, tracker):
    with VideoWriter(tmp_path / "a.avi", fps=10) as video:
        for frame in frames(4):
            video.write(frame)
    offline = list(model.video(tmp_path / "a.avi", batch=4, task="panoptic", tracker=tracker))
    state = None
    for expected in offline:
        (result,), state = model.track([expected.image], state, task="panoptic", tracker=tracker)
        assert result.tracks == expected.tracks and any(result.tracks)
        assert (result.masks == expected.masks).all() and (result.scores == expected.scores).all()


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
@pytest.mark.parametrize("tracker", ["association", "queries", "hints"])
def test_a_thousand_frames_take_constant_memory(model, tracker):
    """The slope of what Python and NumPy hold, from frame 200 on; a mask of a frame is 4096 bytes."""
    state, held = None, []
    tracemalloc.start()
    for number, frame in enumerate(frames(1000)):
        _, state = model.track([frame], state, task="panoptic", tracker=tracker)
        if number >= 200 and number % 50 == 0:
            gc.collect()
            held.append((number, tracemalloc.get_traced_memory()[0]))
    tracemalloc.stop()
    slope = np.polyfit(*zip(*held, strict=True), 1)[0]
    print(f"{tracker}: {slope:.0f} bytes a frame")
    assert slope < 100
