"""Requests to the shipped model: what they change, and what cannot be asked."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from dformer.apps.interactive import (
    MAX_FRAMES,
    PAINTS,
    as_json,
    legend,
    load_model,
    open_image,
    painted_segments,
    refine,
    segment,
    segment_video,
)
from dformer.d2.checkpoint.checkpointer import ASSETS
from dformer.d2.engine.result import Result
from dformer.d2.modeling.meta_arch import Request
from dformer.utils.errors import UserError
from dformer.visualize import DEFAULT_STYLE
from dformer.visualize.files import VideoReader, VideoWriter

SHAPES = "dformer://shapes"
EXAMPLE = ASSETS / "examples" / "shapes-1.jpg"


def panoptic_request(**changes) -> Request:
    return replace(load_model(SHAPES).model.request, **{"tasks": ("panoptic",), **changes})


def ask(**changes) -> list[Result]:
    return segment(load_model(SHAPES), open_image(EXAMPLE), panoptic_request(**changes), seconds=600)


def masks(answer: list[Result], stage: int = -1) -> list[tuple]:
    return [(s.category_id, s.score, s.mask.tobytes()) for s in answer[stage].segments]


def test_the_default_request_is_what_the_predictor_gives():
    found = ask()[-1]
    predictor = load_model(SHAPES)
    assert predictor.task == "panoptic" and predictor.model.options["proposals"] == (1, 20)
    same = predictor(EXAMPLE)
    assert found.names == same.names and (found.scores == same.scores).all() and (found.panoptic == same.panoptic).all()


def test_seed_steps_and_proposals_change_the_result_and_nothing_else_does():
    one, again, other, three = (ask(seed=seed, steps=k) for seed, k in ((3, 1), (3, 1), (4, 1), (3, 3)))
    assert masks(one) == masks(again) != masks(other)
    assert masks(one) == masks(three, stage=0) != masks(three)
    assert [stage.t for stage in three] == [999, 665, 332]
    assert len(masks(ask(proposals=1, object_threshold=0.0))) <= 1


def test_several_answers_are_merged_as_the_predictor_merges_them():
    predictor = load_model(SHAPES)
    (merged,) = segment(predictor, open_image(EXAMPLE), panoptic_request(steps=1, seed=3), 600, samples=3)
    same = predictor.ensemble(EXAMPLE, 3, steps=1, seed=3)
    assert merged.names == same.names and (merged.scores == same.scores).all()
    assert 0 < merged.agreement.min() < 1 and (merged.agreement == same.agreement).all()
    assert merged.draw().shape[1] > 2 * merged.image.shape[1], "the disagreement is drawn beside the segments"


@pytest.mark.parametrize("changes", [{"samples": 0}, {"samples": 9}, {"samples": 2, "tasks": ("instance",)}])
def test_answers_that_cannot_be_merged(changes):
    samples = changes.pop("samples")
    with pytest.raises(UserError, match="answers"):
        segment(load_model(SHAPES), open_image(EXAMPLE), panoptic_request(**changes), 600, samples=samples)


def test_answers_that_take_too_long_are_given_up():
    with pytest.raises(UserError, match="0 seconds.* 1 of 3"):
        segment(load_model(SHAPES), open_image(EXAMPLE), panoptic_request(steps=1), seconds=0, samples=3)


def paint(*strokes) -> np.ndarray:
    """Return a layer as the page's editor has it, transparent but for boxes and rings (colour, slices, is a ring)."""
    layer = np.zeros((512, 512, 4), np.uint8)
    for color, box, ring in strokes:
        patch, before = layer[box], layer[box].copy()
        patch[:] = (*color, 255)
        if ring:
            patch[12:-12, 12:-12] = before[12:-12, 12:-12]
    return layer


def test_painted_patches_are_segments():
    first, second = PAINTS[:2]
    left, right, far = np.s_[40:100, 40:100], np.s_[40:100, 100:200], np.s_[300:400, 300:420]
    layer = paint((first, left, False), (second, right, False), (first, far, True))
    layer[200, 40:100] = (*first, 120)  # the soft edge of a stroke
    found = painted_segments([layer])
    assert [(mask.sum(), mask[box].all()) for mask, box in zip(found, (left, far, right), strict=True)] == [
        (3600, True),
        (12000, True),
        (6000, True),
    ]


@pytest.mark.parametrize(
    "layers", [[], [paint()], [paint(*[(PAINTS[0], np.s_[k : k + 4, :4], False) for k in range(0, 480, 8)])]]
)
def test_nothing_or_too_much_painted(layers):
    with pytest.raises(UserError, match="painted"):
        painted_segments(layers)


def test_coarse_masks_are_refined_at_the_size_of_the_result():
    predictor, coarse = load_model(SHAPES), np.zeros((2, 128, 128), bool)
    coarse[0, 40:80, :30] = coarse[1, 60:110, 20:60] = True
    result, same = refine(predictor, open_image(EXAMPLE), coarse, seed=3), predictor.refine(EXAMPLE, coarse, seed=3)
    assert (result.masks == same.masks).all() and result.names == same.names
    painted = coarse.repeat(4, 1).repeat(4, 2)  # on an enlarged picture
    assert (refine(predictor, open_image(EXAMPLE), painted, seed=3).masks == same.masks).all()
    large = refine(predictor, np.asarray(Image.open(EXAMPLE).resize((1600, 1600))), painted, seed=3)
    assert large.masks.shape == (2, 1280, 1280) and large.size == (1600, 1600)


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_tasks_and_the_minimum_score(task):
    segments = ask(tasks=(task,), object_threshold=0.3)[-1].segments
    assert segments and all(s.score is None if task == "semantic" else s.score >= 0.3 for s in segments)


def test_requests_at_once_do_not_mix():
    seeds = list(range(6))
    with ThreadPoolExecutor(len(seeds)) as pool:
        together = list(pool.map(lambda seed: ask(seed=seed, proposals=20 - seed), seeds))
    assert [masks(a) for a in together] == [masks(ask(seed=seed, proposals=20 - seed)) for seed in seeds]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"tasks": ("video",)}, "video"),
        ({"proposals": 21}, "proposals"),
        ({"steps": 21}, "steps"),
        ({"seed": -1}, "seed"),
        ({"object_threshold": float("nan")}, "object_threshold"),
    ],
)
def test_what_cannot_be_asked_is_refused(changes, name):
    with pytest.raises(UserError, match=name):
        ask(**changes)


def test_a_request_that_takes_too_long_is_given_up():
    with pytest.raises(UserError, match="0 seconds.* 1 of 9"):
        segment(load_model(SHAPES), open_image(EXAMPLE), panoptic_request(steps=9), seconds=0)
    assert masks(ask()), "and the next is served"


def test_large_images_are_not_even_decoded(tmp_path):
    Image.fromarray(np.zeros((6250, 8000), np.uint8)).save(tmp_path / "huge.bmp")
    header = (tmp_path / "huge.bmp").read_bytes()[:2000]
    (tmp_path / "huge.bmp").write_bytes(header)  # which could not be decoded
    with pytest.raises(UserError, match="^huge.bmp.* 8000 x 6250"):
        open_image(tmp_path / "huge.bmp")


def test_errors_do_not_show_the_folder_of_an_upload(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(EXAMPLE.read_bytes()[:900])
    with pytest.raises(UserError, match="broken.jpg") as caught:
        open_image(tmp_path / "broken.jpg")
    assert str(tmp_path) not in str(caught.value)


def test_json_and_legend_list_the_segments():
    large, request = np.asarray(Image.open(EXAMPLE).resize((1600, 800))), panoptic_request()
    answer = segment(load_model(SHAPES), large, request, seconds=600)
    stage = answer[-1]
    picture = stage.draw()
    assert picture.shape == (640, 1280, 3), "results of large images are bounded"
    content = json.loads(as_json(stage, vars(request)))
    assert {name: content[name] for name in vars(request)} == {**vars(request), "tasks": ["panoptic"]}
    entries = legend(stage)
    for record, shown, found in zip(content["segments"], entries, stage.segments, strict=True):
        mask = rle.decode(record["segmentation"])
        assert mask.shape == (800, 1600) and mask.sum() == record["area"]
        assert (mask[::5, ::5] == found.mask[::4, ::4]).mean() > 0.98
        assert record["category"] == shown.name and record["score"] == shown.score
        assert shown.share == pytest.approx(record["area"] / mask.size, abs=0.01)
        inside = picture[found.mask]
        hue = inside.mean(0) - inside.mean()
        assert np.dot(hue, np.array(shown.color) - np.mean(shown.color)) > 0, "drawn in its colour"


def write_clip(file, count):
    picture = np.asarray(Image.open(EXAMPLE))[:64, :64]
    with VideoWriter(file, 10) as video:
        for t in range(count):
            video.write(np.roll(picture, 2 * t, 1))
    return file


def test_a_short_video_is_followed_and_drawn(tmp_path):
    model, clip = load_model(SHAPES), write_clip(tmp_path / "a.avi", 3)
    request = panoptic_request(steps=1)
    found, problem = segment_video(model, clip, request, 600, tmp_path / "b.webm", DEFAULT_STYLE)
    assert not problem and [each["frame"] for each in found["images"]] == [0, 1, 2]
    tracks = [{s["track_id"] for s in each["segments"] if "track_id" in s} for each in found["images"]]
    assert tracks[0] and tracks[0] & tracks[1] & tracks[2]
    with VideoReader(tmp_path / "b.webm") as drawn:
        assert len(list(drawn)) == 3
    found, problem = segment_video(model, clip, request, 1e-9, tmp_path / "c.webm", DEFAULT_STYLE)
    assert len(found["images"]) == 1 and "1 of 3 frames" in problem


def test_videos_that_cannot_be_followed_are_named(tmp_path):
    model, broken = load_model(SHAPES), tmp_path / "broken.mp4"
    broken.write_bytes(write_clip(tmp_path / "a.mp4", 3).read_bytes()[:500])
    with pytest.raises(UserError, match="^video broken.mp4"):
        segment_video(model, broken, panoptic_request(), 600, tmp_path / "b.webm", DEFAULT_STYLE)
    long = write_clip(tmp_path / "long.avi", MAX_FRAMES + 1)
    with pytest.raises(UserError, match=f"long.avi has {MAX_FRAMES + 1} frames"):
        segment_video(model, long, panoptic_request(), 600, tmp_path / "b.webm", DEFAULT_STYLE)
    assert not (tmp_path / "b.webm").exists()
