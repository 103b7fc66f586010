"""Videos in the demo: tracks in the field's formats, folders of frames, and given objects."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from pycocotools import mask as rle

from dformer.apps.demo import Settings, segment_files
from dformer.utils.errors import UserError
from dformer.visualize.files import VideoReader, VideoWriter
from tests.apps.test_demo import records, save_video
from tests.d2.systems import pix2seqd_cfg
from tests.d2.tiny import random_model


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("weights") / "model.pth")


def test_tracks_are_written_in_the_formats_of_the_field(cfg, tmp_path):
    out, settings = tmp_path / "out", Settings("panoptic", tracks=("youtube_vis", "mots", "png"))
    assert segment_files(cfg, [str(save_video(tmp_path / "a.mp4", 3))], out, settings) == []
    found = [{s["track_id"]: s for s in r["segments"] if "track_id" in s} for r in records(out)]
    assert all(found)
    tracks = json.loads((out / "a.tracks.json").read_text())
    assert len(tracks) == len(set().union(*found)) and all(len(track["segmentations"]) == 3 for track in tracks)
    assert sum(mask is not None for track in tracks for mask in track["segmentations"]) == sum(map(len, found))
    lines = [line.split(" ") for line in (out / "a.tracks.txt").read_text().splitlines()]
    for frame, number, cls, height, width, counts in lines:
        segment = found[int(frame)][int(number) % 1000]
        assert (int(cls), int(number) // 1000) == (segment["category_id"] + 1,) * 2
        assert segment["segmentation"] == {"size": [int(height), int(width)], "counts": counts}
    for k, segments in enumerate(found):
        ids = np.array(Image.open(out / "a.tracks" / f"{k:05d}.png"))
        for track, segment in segments.items():
            np.testing.assert_array_equal(ids == track, rle.decode(segment["segmentation"]))
    with pytest.raises(UserError, match="davis"):
        segment_files(cfg, [str(tmp_path / "a.mp4")], out, Settings(tracks=("davis",)))


def test_a_folder_of_frames_is_a_video_whose_bad_frames_are_named(cfg, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for k, size in enumerate([(80, 48)] * 4 + [(40, 48)] * 2):
        Image.new("RGB", size, (40 * k, 0, 0)).save(frames / f"{k:05d}.png")
    (frames / "00001.png").write_text("no image")
    problems = segment_files(cfg, [str(frames)], tmp_path / "out", Settings("panoptic", frames=True))
    assert len(problems) == 2 and "00001.png" in problems[0] and "frame 4" in problems[1]
    found = records(tmp_path / "out")
    assert [record["frame"] for record in found] == [0, 2, 3, 4, 5]
    ids = [{s["track_id"] for s in record["segments"] if "track_id" in s} for record in found]
    assert (ids[0] | ids[1] | ids[2]).isdisjoint(ids[3] | ids[4])
    with VideoReader(tmp_path / "out" / "frames.mp4") as video:
        assert len(list(video)) == 5
    (tmp_path / "none").mkdir()
    (problem,) = segment_files(cfg, [str(tmp_path / "none")], tmp_path / "out", Settings(frames=True))
    assert "none" in problem


def test_a_stream_with_corrupt_frames_is_named_and_the_others_kept(cfg, tmp_path):
    file = tmp_path / "corrupt.avi"
    with VideoWriter(file, 10) as video:
        for frame in np.random.default_rng(0).integers(0, 99, (12, 48, 80, 3), np.uint8):
            video.write(frame)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    file.write_bytes(content)
    empty = cv2.VideoWriter(str(tmp_path / "empty.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (80, 48))
    empty.release()
    problems = segment_files(cfg, [str(file), str(tmp_path / "empty.avi")], tmp_path / "out", Settings("panoptic"))
    assert len(problems) == 2 and "corrupt.avi" in problems[0] and "of 12" in problems[0] and "empty.avi" in problems[1]
    assert 8 <= len(records(tmp_path / "out")) < 12
    with VideoReader(tmp_path / "out" / "corrupt.mp4") as video:
        assert len(list(video)) == len(records(tmp_path / "out"))


def test_given_objects_of_the_first_frame_are_followed(cfg, tmp_path):
    ids = np.zeros((48, 80), np.uint8)
    ids[10:30, 20:60] = 1
    Image.fromarray(ids).save(tmp_path / "ids.png")
    settings = Settings("panoptic", objects=str(tmp_path / "ids.png"))
    assert segment_files(cfg, [str(save_video(tmp_path / "a.mp4", 2))], tmp_path / "out", settings) == []
    free = segment_files(cfg, [str(tmp_path / "a.mp4")], tmp_path / "free", Settings("panoptic"))
    given, others = (
        [{s.get("track_id") for s in r["segments"]} for r in records(tmp_path / d)] for d in ("out", "free")
    )
    assert free == [] and 1 in others[0] and min(i for i in given[0] - {1} if i) >= 2
    with pytest.raises(UserError, match="queries"):
        segment_files(cfg, [str(tmp_path / "a.mp4")], tmp_path / "out", replace(settings, tracker="queries"))


def test_past_maps_follow_given_objects_of_known_classes(tmp_path):
    cfg = pix2seqd_cfg()
    cfg.MODEL.PIX2SEQD.PAST_MAPS, cfg.MODEL.WEIGHTS, cfg.TEST.TASKS = 2, str(tmp_path / "model.pth"), ("panoptic",)
    torch.save({"model": build_model(cfg).state_dict(), "config": cfg.dump()}, cfg.MODEL.WEIGHTS)
    ids = np.zeros((48, 80), np.uint8)
    ids[:20], ids[30:] = 3, 7
    Image.fromarray(ids).save(tmp_path / "ids.png")
    settings = Settings("panoptic", tracker="past_maps", objects=str(tmp_path / "ids.png"))
    video, out = str(save_video(tmp_path / "a.mp4", 2)), tmp_path / "out"
    for classes in ((), ("disc",), ("disc", "dics")):
        with pytest.raises(UserError, match="classes"):
            segment_files(cfg, [video], out, replace(settings, object_classes=classes))
    assert segment_files(cfg, [video], out, replace(settings, object_classes=("disc", "star"))) == []
    assert len(records(out)) == 2
