"""The ways to follow objects: ids stay, frames one by one give the same as all at once, and states do not grow."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from dformer.d2.modeling.tracking import TRACKERS, build_tracker, tracked_request, trackers_of
from dformer.utils.errors import UserError
from tests.d2.modeling.test_pix2seqd import video_model
from tests.d2.systems import build
from tests.d2.tiny import tiny_cfg


def model_for(tracker):
    """A tiny model with random weights that the tracker can be used with, all of whose queries find something."""
    torch.manual_seed(0)
    if tracker == "past_maps":
        model = video_model()
        torch.nn.init.normal_(model.head.decoder.conv_out.weight, std=2.0)
        return model
    opts = ["DIFFUSION.ASSIGNMENT", "denoising", "TEST.OBJECT_THRESHOLD", 0.0, "TEST.OVERLAP_THRESHOLD", 0.0]
    model = build_model(tiny_cfg(opts=opts)).eval()
    model.things[:] = True
    return model


def clip(count, size=64):
    """Frames of a bright square that moves over noise."""
    generator = torch.Generator().manual_seed(0)
    frames = []
    for t in range(count):
        image = torch.randint(60, (3, size, size), generator=generator, dtype=torch.uint8)
        image[:, 20:40, 2 * t % (size - 20) :][:, :, :20] = 255
        frames.append({"image": image, "height": size, "width": size})
    return frames


def tracker_of(name, task="panoptic"):
    model = model_for(name)
    return build_tracker(name, model, replace(model.request, tasks=(task,)))


def equal(first, other):
    """Whether two results have the same map and segments; rounding differs with the size of the batch."""
    ids, segments = first["panoptic_seg"]
    others = [pytest.approx(segment, rel=1e-5) for segment in other["panoptic_seg"][1]]
    return torch.equal(ids, other["panoptic_seg"][0]) and segments == others


@pytest.mark.parametrize("name", TRACKERS)
def test_frames_one_by_one_give_the_same_as_all_at_once(name):
    tracker, frames, state = tracker_of(name), clip(4), None
    offline, _ = tracker(frames)
    for frame, expected in zip(frames, offline, strict=True):
        (result,), state = tracker([frame], state)
        assert equal(result, expected)
        things = [s for s in result["panoptic_seg"][1] if s["isthing"]]
        ids = [s["track_id"] for s in things]
        assert things and len(set(ids)) == len(ids) and min(ids) >= 1
        assert all("track_id" not in s for s in result["panoptic_seg"][1] if not s["isthing"])


@pytest.mark.parametrize("name", TRACKERS)
def test_instances_have_tracks_and_a_frame_again_has_the_same(name):
    tracker, (frame,) = tracker_of(name, "instance"), clip(1)
    (first, again), _ = tracker([frame, frame])
    assert len(first["instances"].track_ids) == len(first["instances"]) > 0
    if name in ("association", "queries"):  # nothing else decides
        assert torch.equal(first["instances"].track_ids, again["instances"].track_ids)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_frame_of_another_size_goes_on_with_new_objects(name):
    tracker = tracker_of(name)
    (before,), state = tracker(clip(1))
    (after,), state = tracker(clip(1, size=96), state)
    ids = [{s["track_id"] for s in result["panoptic_seg"][1] if s["isthing"]} for result in (before, after)]
    assert ids[1] and (name == "queries" or ids[0].isdisjoint(ids[1]))
    tracker(clip(1), state)


@pytest.mark.parametrize("name", ["association", "hints", "past_maps"])
def test_given_objects_are_followed_from_the_first_frame_on(name):
    tracker, frames = tracker_of(name), clip(2)
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 20:40, :20] = masks[1, 44:, 44:] = True
    classes = [0, 1] if name == "past_maps" else None
    state = tracker.begin(frames[0], masks, classes)
    (first, _), _ = tracker(frames, state)
    free, _ = tracker(frames[:1])
    ids = [{s["track_id"] for s in result["panoptic_seg"][1] if s["isthing"]} for result in (first, free[0])]
    assert (1 in ids[1] or name == "past_maps") and (ids[0] - {1, 2} == set() or min(ids[0] - {1, 2}) >= 3)


@pytest.mark.parametrize(
    ("system", "names"),
    [
        ("DFormer", {"association", "queries"}),
        ("DFormer, denoising assignment", {"association", "queries", "hints"}),
        ("Pix2SeqD", {"association"}),
        ("LDMSeg", {"association"}),
    ],
)
def test_the_trackers_of_a_model(system, names):
    model = build(system)
    assert set(trackers_of(model)) == names
    for name in TRACKERS.keys() - names:
        with pytest.raises(UserError, match=name):
            build_tracker(name, model, model.request)
    assert set(trackers_of(model_for("past_maps"))) == {"association", "past_maps"}


def test_what_a_model_cannot_do_is_said():
    model = model_for("association")
    request = tracked_request(model.request)
    for name in ("past_maps", "quries"):
        with pytest.raises(UserError, match=name):
            build_tracker(name, model, request)
    with pytest.raises(UserError, match="queries"):
        build_tracker("queries", model_for("past_maps"), request)
    with pytest.raises(UserError, match="hints"):
        build_tracker("hints", build_model(tiny_cfg("Mask2Former")).eval(), request)
    with pytest.raises(UserError, match="queries"):
        build_tracker("queries", model, request).begin(clip(1)[0], np.ones((1, 64, 64), bool))
    many = np.ones((9, 64, 64), bool)
    with pytest.raises(UserError, match="9 masks"):
        tracker = build_tracker("hints", model, request)
        tracker(clip(1), tracker.begin(clip(1)[0], many))


def test_past_ids_that_no_past_map_has_are_new_tracks():
    tracker = tracker_of("past_maps")
    labels = torch.zeros(2, 32, 32, dtype=torch.int64)
    labels[:, :4] = torch.tensor([1, 3])[:, None, None]
    past = tracker.next_past(None, labels, [3])
    assert past.tracks == {3: 1}
    for frames, expected in ((1, 1), (2, 2)):  # hidden for as many frames as there are past maps: forgotten
        later = past
        for _ in range(frames):
            later = tracker.next_past(later, 0 * labels, [])
        assert tracker.next_past(later, labels, [3]).tracks == {3: expected}
