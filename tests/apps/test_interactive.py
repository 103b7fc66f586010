"""Requests to the shipped model: what they change, and what cannot be asked."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from dformer.apps import interactive
from dformer.apps.interactive import Answer, Request, as_json, legend, load_model, open_image, segment
from dformer.d2.checkpoint.checkpointer import ASSETS
from dformer.d2.data import read_image
from dformer.utils.errors import UserError

SHAPES = "dformer://shapes"
EXAMPLE = ASSETS / "examples" / "shapes-1.jpg"


def ask(**changes) -> Answer:
    predictor, request = load_model(SHAPES)
    return segment(predictor, open_image(EXAMPLE), replace(request, **changes), seconds=600)


def masks(answer: Answer, step: int = -1) -> list[tuple]:
    return [(s.category_id, s.score, s.mask.tobytes()) for s in answer.steps[step].segments]


def test_the_default_request_is_what_the_predictor_gives():
    found = ask().steps[-1].segments
    predictor, request = load_model(SHAPES)
    assert request.task == "panoptic" and request.masks == predictor.num_masks == 20
    predictor.model.tasks = ("panoptic",)
    segment_map, infos = predictor([read_image(EXAMPLE)])[0]["panoptic_seg"]
    assert [(s.category_id, s.score) for s in found] == [(i["category_id"], i["score"]) for i in infos]
    assert all((s.mask == (segment_map.numpy() == i["id"])).all() for s, i in zip(found, infos, strict=True))


def test_seed_and_steps_change_the_result_and_nothing_else_does():
    one, again, other, three = ask(seed=3), ask(seed=3), ask(seed=4), ask(seed=3, steps=3)
    assert masks(one) == masks(again) != masks(other)
    assert masks(one) == masks(three, step=0) != masks(three)
    assert [step.t for step in three.steps] == [999, 665, 332]


def test_fewer_masks_find_less_for_one_request():
    assert len(ask(masks=1, confidence=0.0).steps[-1].segments) <= 1
    assert len(load_model(SHAPES).predictor.model.head.mask_decoder.query_embed) == 20


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_tasks_and_the_least_score(task):
    answer = ask(task=task, confidence=0.3)
    assert answer.steps[-1].segments
    assert all(s.score is None if task == "semantic" else s.score >= 0.3 for s in answer.steps[-1].segments)


def test_requests_at_once_do_not_mix():
    seeds = list(range(6))
    with ThreadPoolExecutor(len(seeds)) as pool:
        together = list(pool.map(lambda seed: ask(seed=seed, masks=20 - seed), seeds))
    assert [masks(a) for a in together] == [masks(ask(seed=seed, masks=20 - seed)) for seed in seeds]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "video"}, 'task "video" does not exist'),
        ({"masks": 21}, "masks must be in 1..20, got 21"),
        ({"steps": 21}, "steps must be in 1..20, got 21"),
        ({"seed": -1}, "seed must be in 0"),
        ({"confidence": float("nan")}, "confidence must be in 0..1, got nan"),
    ],
)
def test_what_cannot_be_asked_is_told(changes, says):
    with pytest.raises(UserError, match=says):
        ask(**changes)


def test_a_request_that_takes_too_long_is_given_up():
    predictor, request = load_model(SHAPES)
    with pytest.raises(UserError, match="given up after 0 seconds, with 1 of 9 sampling steps done"):
        segment(predictor, open_image(EXAMPLE), replace(request, steps=9), seconds=0)
    assert masks(ask()), "and the next is served"


def test_large_images_are_not_even_decoded(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((6250, 8000), np.uint8)).save(tmp_path / "huge.png")
    monkeypatch.setattr(interactive, "read_image", None)
    with pytest.raises(UserError, match=r"^huge.png has 8000 x 6250 pixels, 50 megapixels; here it may have 24"):
        open_image(tmp_path / "huge.png")


def test_broken_images_are_told_without_their_place(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(EXAMPLE.read_bytes()[:900])
    with pytest.raises(UserError, match="image broken.jpg cannot be read") as caught:
        open_image(tmp_path / "broken.jpg")
    assert str(tmp_path) not in str(caught.value)


def test_json_and_legend_tell_the_segments():
    predictor, request = load_model(SHAPES)
    large = np.asarray(Image.open(EXAMPLE).resize((1600, 800)))
    answer = segment(predictor, large, request, seconds=600)
    step = answer.steps[-1]
    assert step.picture.shape == (640, 1280, 3), "results of large images are bounded"
    content = json.loads(as_json(answer, request, SHAPES))
    assert Request(**{name: content[name] for name in vars(request)}) == request
    for record, shown, found in zip(content["segments"], legend(step, answer.class_names), step.segments, strict=True):
        mask = rle.decode(record["segmentation"])
        assert mask.shape == (800, 1600) and mask.sum() == record["area"]
        assert (mask[::5, ::5] == found.mask[::4, ::4]).mean() > 0.98
        assert record["category"] == shown.name and record["score"] == shown.score
        assert shown.share == pytest.approx(record["area"] / mask.size, abs=0.01)
        inside = step.picture[found.mask]
        hue = inside.mean(0) - inside.mean()
        assert np.dot(hue, np.array(shown.color) - np.mean(shown.color)) > 0, "drawn in its colour"
