"""Segmentation and tracking quality."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from dformer.metrics.stq import renew_returning_ids, segmentation_and_tracking_quality


def video(ids, classes=1):
    ids = np.asarray(ids)
    return np.stack([np.broadcast_to(classes, ids.shape), ids], axis=-1)


def quality(truth, found):
    return segmentation_and_tracking_quality([(truth, found)], 3, [1, 2], 255)[0]


def test_perfect_whatever_the_ids_are():
    truth, found = video([[[1, 1, 2, 2]]] * 3), video([[[5, 5, 3, 3]]] * 3)
    assert quality(truth, found) == (1, 1, 1)


def test_a_switched_id_halves_the_association():
    truth, found = video([[[1, 1]], [[1, 1]]]), video([[[1, 1]], [[2, 2]]])
    assert quality(truth, found).aq == pytest.approx(0.5) and quality(truth, found).iou == 1


def test_crowds_and_void_are_not_counted():
    truth, found = video([[[1, 0, 3, 3]]], [1, 1, 255, 255]), video([[[1, 4, 5, 0]]], [1, 1, 2, 0])
    assert quality(truth, found) == (1, 1, 1)


def test_ids_that_return():
    ids = np.array([1, 0, 1, 0, 0, 1, 1])[:, None, None]
    assert renew_returning_ids(ids, 2).flatten().tolist() == [1, 0, 1, 0, 0, 2, 2]
    assert renew_returning_ids(ids, 1).flatten().tolist() == [1, 0, 2, 0, 0, 3, 3]
    assert renew_returning_ids(ids, 3).flatten().tolist() == ids.flatten().tolist()


@pytest.mark.golden
def test_golden_stq(golden_dir):
    golden = load_file(golden_dir / "pix2seqd_stq.safetensors")
    config = {key.removeprefix("config."): x.tolist() for key, x in golden.items() if key.startswith("config.")}
    settings = config["num_classes"], config["things"], config["ignore"]
    truth, found = golden["gt"], golden["pred"]
    renewed = np.stack([renew_returning_ids(ids, config["past"]) for ids in found[..., 1]])
    # new ids are numbered otherwise there, in whatever order: the partition of the pixels is the same
    for mine, theirs in zip(renewed, golden["remapped.ids"], strict=True):
        pairs = np.unique(np.stack([mine, theirs]).reshape(2, -1), axis=1)
        assert pairs.shape[1] == len(np.unique(mine)) == len(np.unique(theirs))
    for part, ids in (("plain", found[..., 1]), ("remapped", renewed)):
        pairs = zip(truth, np.stack([found[..., 0], ids], axis=-1), strict=True)
        overall, each = segmentation_and_tracking_quality(pairs, *settings)
        for i, key in enumerate(("STQ", "AQ", "IoU")):
            assert overall[i] == pytest.approx(golden[f"{part}.{key}"].item(), abs=1e-6)
            assert [quality[i] for quality in each] == pytest.approx(golden[f"{part}.{key}_per_seq"].tolist(), abs=1e-6)
