"""Videos in the demo: tracks in the field's formats, folders of frames, and given objects."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from dformer.apps.demo import Settings, segment_files
from dformer.utils.errors import UserError
from dformer.visualize.files import VideoReader
from tests.apps.test_demo import records, save_video
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
