"""The demo from the command line to the files that it leaves, with a tiny model of random weights."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from dformer.apps.demo import Settings, segment_files
from dformer.apps.demo import run as demo_run
from dformer.apps.demo.inputs import find_inputs, output_files
from dformer.d2.engine.predictor import Predictor
from dformer.utils.errors import UserError
from dformer.visualize import enlargement
from dformer.visualize.files import VideoReader, VideoWriter
from tests import load_script
from tests.d2.tiny import tiny_cfg

tool = load_script("tools/demo.py")

RANDOM = np.random.default_rng(0)
SHAPES = {"disc", "square", "triangle", "star", "grass", "water", "brick"}


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    cfg = tiny_cfg()
    cfg.MODEL.WEIGHTS = str(tmp_path_factory.mktemp("weights") / "model.pth")
    cfg.TEST.OBJECT_THRESHOLD = cfg.TEST.OVERLAP_THRESHOLD = 0.0
    torch.manual_seed(0)
    model = build_model(cfg)
    model.head.mask_decoder.class_embed.bias.data[-1] = -10  # no query finds nothing
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    return cfg


@pytest.fixture(scope="module")
def config_file(cfg, tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(cfg.dump())
    return str(file)


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["demo.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        tool.main()
    return caught.value.code


def save_image(file: Path, height: int = 48, width: int = 80, mode: str = "RGB", **options) -> Path:
    file.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), np.uint8)).convert(mode).save(file, **options)
    return file


def segments_of(output: Path) -> list[dict]:
    return json.loads((output / "segments.json").read_text())["images"]


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_pictures_and_segments(cfg, tmp_path, task):
    files = [save_image(tmp_path / "a.jpg"), save_image(tmp_path / "b.png", 130, 40)]
    threshold = None if task == "semantic" else 0.0
    assert segment_files(cfg, [str(tmp_path)], tmp_path / "out", Settings(task, threshold)) == []
    for file, record, (height, width) in zip(files, segments_of(tmp_path / "out"), [(48, 80), (130, 40)], strict=True):
        assert record["file"] == str(file) and (record["height"], record["width"]) == (height, width)
        picture = np.asarray(Image.open(tmp_path / "out" / record["picture"]))
        scale = enlargement(height, width)
        assert picture.shape == (height * scale, width * scale, 3)
        assert record["segments"]
        covered = np.zeros((height, width), int)
        for segment in record["segments"]:
            mask = rle.decode(segment["segmentation"])
            y, x = np.nonzero(mask)
            assert segment["area"] == mask.sum() > 0
            assert segment["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
            assert segment["category"] in SHAPES
            assert segment["isthing"] == (segment["category_id"] < 4 and task != "semantic")
            assert (segment["score"] is None) == (task == "semantic")
            covered += mask
        original = np.asarray(Image.open(file).resize((width * scale, height * scale)))
        drawn = (picture != original).any(axis=2)
        assert drawn[covered.repeat(scale, axis=0).repeat(scale, axis=1) > 0].mean() > 0.95
        assert len({segment["id"] for segment in record["segments"]}) == len(record["segments"])
        if task != "instance":
            assert covered.max() == 1
        if task == "semantic":
            assert covered.min() == 1


def test_the_threshold_leaves_out_the_unsure(cfg, tmp_path):
    file = str(save_image(tmp_path / "a.png"))
    for task in ("panoptic", "instance"):
        segment_files(cfg, [file], tmp_path / "all", Settings(task, 0.0))
        scores = sorted(segment["score"] for segment in segments_of(tmp_path / "all")[0]["segments"])
        threshold = (scores[0] + scores[-1]) / 2
        segment_files(cfg, [file], tmp_path / "sure", Settings(task, threshold))
        sure = [segment["score"] for segment in segments_of(tmp_path / "sure")[0]["segments"]]
        assert len(sure) < len(scores) and all(score >= threshold for score in sure)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_any_mode(cfg, tmp_path, mode):
    if mode == "I;16":
        Image.fromarray(RANDOM.integers(0, 65536, (20, 30), np.uint16)).save(tmp_path / "a.png")
    else:
        save_image(tmp_path / "a.tif", 20, 30, mode)
    assert segment_files(cfg, [str(tmp_path)], tmp_path / "out") == []
    assert Image.open(tmp_path / "out" / "a.png").size == (240, 160)


def test_images_are_turned_as_their_exif_says(cfg, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "a.jpg", 20, 30, exif=exif)
    segment_files(cfg, [str(tmp_path / "a.jpg")], tmp_path / "out")
    record = segments_of(tmp_path / "out")[0]
    assert (record["height"], record["width"]) == (30, 20)


def test_large_images_are_drawn_smaller_and_their_segments_are_not(cfg, tmp_path, monkeypatch):
    file = save_image(tmp_path / "a.png", 600, 900)
    monkeypatch.setattr(demo_run, "MAX_PIXELS", 600 * 900 // 4)
    segment_files(cfg, [str(file)], tmp_path / "out", Settings(threshold=0.0))
    assert Image.open(tmp_path / "out" / "a.png").size == (900 // 2 * enlargement(300, 450), 600)
    (record,) = segments_of(tmp_path / "out")
    assert (record["height"], record["width"]) == (600, 900)
    assert all(segment["segmentation"]["size"] == [600, 900] for segment in record["segments"])
    assert sum(segment["area"] for segment in record["segments"]) <= 600 * 900


def test_unreadable_files_are_named_and_skipped(monkeypatch, config_file, tmp_path, capsys):
    save_image(tmp_path / "good.jpg")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(save_image(tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "empty.bmp").touch()
    arguments = ["--config-file", config_file, "--output", str(tmp_path / "out"), "--input"]
    names = ["good.jpg", "text.jpg", "cut.png", "empty.bmp", "missing.jpg", "none*.jpg"]
    assert run(monkeypatch, *arguments, *(str(tmp_path / name) for name in names)) == 1
    errors = capsys.readouterr().err
    assert all(name in errors for name in names[1:]) and "good.jpg" not in errors
    assert [record["picture"] for record in segments_of(tmp_path / "out")] == ["good.png"]
    assert sorted(os.listdir(tmp_path / "out")) == ["good.png", "segments.json"]


def test_exit_status(monkeypatch, config_file, tmp_path, capsys):
    image, output = str(save_image(tmp_path / "a.jpg")), str(tmp_path / "out")
    usual = ["--config-file", config_file, "--output", output]
    assert run(monkeypatch, *usual, "--input", image, "--steps", "2", "--seed", "5") == 0
    assert run(monkeypatch, *usual, "--input", str(tmp_path / "nothing.jpg")) == 1
    for arguments, says in [
        (["--input", "https://example.org/a.jpg"], "nothing is fetched"),
        (["--input", image, "--task", "video"], "invalid choice"),
        (["--input", image, "--steps", "0"], "must be in 1..1000, got 0"),
        (["--input", image, "--threshold", "1.5"], "must be in 0..1, got 1.5"),
        (["--input", image, "--alpha", "-1"], "alpha must be in 0..1, got -1"),
        (["--input", image, "--every", "0"], "every must be 1 or more, got 0"),
        (["--input", image, "--compare", "no.pth"], "no.pth does not exist"),
        (["--input", image, "--task", "semantic", "--threshold", "0.5"], "no scores"),
        (["--input", image, "--opts", "MODEL.WEIGHTS", "no.pth"], "no.pth does not exist"),
        (["--input", image, "--opts", "MODEL.WEIGHT", "a.pth"], 'did you mean "MODEL.WEIGHTS"'),
        ([], "with --input"),
    ]:
        assert run(monkeypatch, *usual, *arguments) == 2
        assert says in capsys.readouterr().err


def test_a_checkpoint_alone_is_enough(cfg, monkeypatch, tmp_path, capsys):
    checkpoint = {"model": torch.load(cfg.MODEL.WEIGHTS)["model"], "config": cfg.dump()}
    torch.save(checkpoint, tmp_path / "trained.pth")
    arguments = ["--input", str(save_image(tmp_path / "a.jpg")), "--output", str(tmp_path / "out")]
    assert run(monkeypatch, "--weights", str(tmp_path / "trained.pth"), *arguments) == 0
    assert {segment["category"] for segment in segments_of(tmp_path / "out")[0]["segments"]} <= SHAPES
    assert json.loads((tmp_path / "out/segments.json").read_text())["weights"] == str(tmp_path / "trained.pth")
    assert run(monkeypatch, "--weights", cfg.MODEL.WEIGHTS, *arguments) == 2
    assert run(monkeypatch, *arguments) == 2
    errors = capsys.readouterr().err
    assert "carries no config" in errors and "give a checkpoint with --weights" in errors


def test_an_output_folder_that_cannot_be_is_told(cfg, tmp_path):
    image = str(save_image(tmp_path / "a.jpg"))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="out cannot be made"):
        segment_files(cfg, [image], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "a file"


def test_the_same_seed_gives_the_same_picture(monkeypatch, config_file, tmp_path):
    image = str(save_image(tmp_path / "a.jpg"))
    contents = []
    for name, seed in [("one", "1"), ("again", "1"), ("two", "2")]:
        arguments = ["--output", str(tmp_path / name), "--seed", seed, "--threshold", "0"]
        assert run(monkeypatch, "--config-file", config_file, "--input", image, *arguments) == 0
        contents.append(segments_of(tmp_path / name))
    assert contents[0] == contents[1] != contents[2]


def test_same_names_do_not_overwrite_each_other_nor_the_inputs(cfg, tmp_path):
    files = [save_image(tmp_path / name) for name in ("one/a.jpg", "two/a.jpg", "two/A.png", "out/a.png")]
    original = files[-1].read_bytes()
    assert segment_files(cfg, [str(file) for file in files], tmp_path / "out") == []
    pictures = [record["picture"] for record in segments_of(tmp_path / "out")]
    assert len({picture.casefold() for picture in pictures}) == 4
    assert files[-1].read_bytes() == original
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*pictures, "a.png", "segments.json"])


def test_numbers_are_not_taken_twice():
    files = [Path("x/a.jpg"), Path("y/a.jpg"), Path("z/a-2.jpg")]
    assert [file.name for file in output_files(files, Path("out"))] == ["a.png", "a-2.png", "a-2-2.png"]


def test_inputs_may_be_files_folders_and_patterns(tmp_path):
    for name in ("b.jpg", "a.PNG", "deep/c.jpg", "notes.txt", "[1].jpg"):
        save_image(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).touch()

    def names(*inputs: str) -> list[str]:
        return [file.name for file in find_inputs([str(tmp_path / name) for name in inputs])[0]]

    assert names("") == ["[1].jpg", "a.PNG", "b.jpg"]
    assert names("*.jpg", "b.jpg", "deep/../b.jpg") == ["[1].jpg", "b.jpg"]
    assert names("**/c.jpg") == ["c.jpg"]
    assert names("[1].jpg") == ["[1].jpg"], "a file may be named like a pattern"
    (tmp_path / "bare").mkdir()
    assert find_inputs([str(tmp_path / "bare")])[1][0].startswith(
        f"folder {tmp_path / 'bare'} holds no images or videos"
    )


def test_an_interruption_leaves_whole_pictures(cfg, tmp_path, monkeypatch):
    files = [str(save_image(tmp_path / name)) for name in ("a.png", "b.png", "c.png")]
    save, saved = Image.Image.save, []

    def save_two(self, file, **options):
        saved.append(file)
        if len(saved) < 3:
            return save(self, file, **options)
        Path(file).write_bytes(b"half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", save_two)
    with pytest.raises(KeyboardInterrupt):
        segment_files(cfg, files, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.png", "segments.json"]
    assert [record["picture"] for record in segments_of(tmp_path / "out")] == ["a.png", "b.png"]
    for name in ("a.png", "b.png"):
        Image.open(tmp_path / "out" / name).load()


def save_video(file: Path, count: int = 10, height: int = 48, width: int = 80, fps: float = 20) -> Path:
    with VideoWriter(file, fps) as video:
        for k in range(count):
            video.write(np.full((height, width, 3), 20 * k % 256, np.uint8))
    return file


@pytest.mark.parametrize(("every", "expected"), [(1, list(range(10))), (3, [0, 3, 6, 9])])
def test_videos(cfg, tmp_path, every, expected):
    video, image = save_video(tmp_path / "a.mp4"), save_image(tmp_path / "a.jpg")
    assert segment_files(cfg, [str(tmp_path)], tmp_path / "out", Settings(every=every, batch=4)) == []
    assert sorted(os.listdir(tmp_path / "out")) == ["a.mp4", "a.png", "segments.json"]
    with VideoReader(tmp_path / "out" / "a.mp4") as result:
        assert result.fps == pytest.approx(20 / every, abs=0.01), "it takes as long as the original"
        frames = list(result)
    assert len(frames) == len(expected)
    records = segments_of(tmp_path / "out")
    assert [record.get("frame") for record in records] == [None, *expected]
    assert records[0]["file"] == str(image) and {record["file"] for record in records[1:]} == {str(video)}
    scale = enlargement(48, 80)
    assert frames[0][1].shape == (48 * scale, 80 * scale, 3)
    assert all(rle.decode(s["segmentation"]).shape == (48, 80) for record in records for s in record["segments"])


def test_frames_are_batched_and_each_is_as_an_image_of_its_own(cfg, tmp_path, monkeypatch):
    frames = [np.full((48, 80, 3), 25 * k, np.uint8) for k in range(10)]
    batches = []
    call = Predictor.__call__

    def count(self, images, sizes):
        batches.append(len(images))
        return call(self, images, sizes)

    monkeypatch.setattr(Predictor, "__call__", count)
    monkeypatch.setattr(demo_run, "VideoReader", lambda *_: FakeReader(frames))
    (tmp_path / "a.mp4").touch()
    segment_files(cfg, [str(tmp_path / "a.mp4")], tmp_path / "video", Settings(batch=4))
    assert batches == [4, 4, 2]
    for k in (0, 7):
        Image.fromarray(frames[k]).save(tmp_path / "frame.png")
        segment_files(cfg, [str(tmp_path / "frame.png")], tmp_path / "image")
        alone, among = segments_of(tmp_path / "image")[0]["segments"], segments_of(tmp_path / "video")[k]["segments"]
        assert len(alone) == len(among) > 0
        for one, other in zip(alone, among, strict=True):
            assert one["category"] == other["category"] and one["score"] == pytest.approx(other["score"], abs=1e-5)
            same = rle.decode(one["segmentation"]) == rle.decode(other["segmentation"])
            assert same.mean() > 0.999, "but for rounding"


class FakeReader:
    """Frames as `VideoReader` gives them, then an interruption, as a camera ends."""

    fps, length = 30.0, None

    def __init__(self, frames, end=()):
        self.frames, self.end = frames, end

    def __iter__(self):
        yield from enumerate(self.frames)
        for error in self.end:
            raise error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_a_camera_is_segmented_until_an_interruption(config_file, tmp_path, monkeypatch, capsys):
    opened = []
    frames = [np.full((48, 80, 3), 25 * k, np.uint8) for k in range(6)]
    monkeypatch.setattr(
        demo_run, "VideoReader", lambda *args: opened.append(args) or FakeReader(frames, [KeyboardInterrupt])
    )
    arguments = ["--config-file", config_file, "--camera", "2", "--every", "3", "--batch", "3"]
    assert run(monkeypatch, *arguments, "--output", str(tmp_path / "out")) == 130
    assert "interrupted: what is in" in capsys.readouterr().err
    assert opened == [(2, 3)]
    with VideoReader(tmp_path / "out" / "camera-2.mp4") as video:
        assert video.fps == pytest.approx(10) and len(list(video)) == 6
    assert [record["file"] for record in segments_of(tmp_path / "out")] == ["camera 2"] * 6


def test_a_signal_in_the_middle_of_a_video_leaves_whole_files(config_file, tmp_path, monkeypatch):
    save_image(tmp_path / "a.png"), save_video(tmp_path / "b.mp4"), save_video(tmp_path / "c.mp4")
    written = []
    write = VideoWriter.write

    def write_six(self, frame):
        write(self, frame)
        written.append(1)
        if len(written) == 6:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(demo_run.VideoWriter, "write", write_six)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what runs in the background
    arguments = ["--config-file", config_file, "--input", str(tmp_path), "--coco", "--output", str(tmp_path / "out")]
    try:
        assert run(monkeypatch, *arguments) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.mp4", "coco.json", "segments.json"]
    with VideoReader(tmp_path / "out" / "b.mp4") as video:
        assert len(list(video)) == 6
    assert [record.get("frame") for record in segments_of(tmp_path / "out")] == [None, 0, 1, 2, 3, 4]
    assert len(COCO(tmp_path / "out" / "coco.json").imgs) == 6


def test_an_error_in_the_middle_of_a_video_leaves_nothing_half_written(cfg, tmp_path, monkeypatch):
    save_video(tmp_path / "b.mp4")
    monkeypatch.setattr(demo_run, "draw_segments", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        segment_files(cfg, [str(tmp_path)], tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_broken_videos_are_named(cfg, tmp_path):
    whole = save_video(tmp_path / "whole.avi", 40).read_bytes()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    problems = segment_files(cfg, [str(tmp_path)], tmp_path / "out")
    assert len(problems) == 2 and "text.mp4 cannot be read" in problems[1]
    assert "cut.avi" in problems[0]
    assert (tmp_path / "out" / "whole.mp4").exists()


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_coco_files_are_read_by_cocos_own_tool(cfg, tmp_path, task):
    save_image(tmp_path / "a.jpg"), save_image(tmp_path / "b.png", 130, 40)
    threshold = None if task == "semantic" else 0.0
    segment_files(cfg, [str(tmp_path)], tmp_path / "out", Settings(task, threshold, coco=True))
    coco = COCO(tmp_path / "out" / "coco.json")
    for image_id, record in enumerate(segments_of(tmp_path / "out"), start=1):
        image, annotations = coco.imgs[image_id], coco.loadAnns(coco.getAnnIds([image_id]))
        assert (image["file_name"], image["height"], image["width"]) == (
            record["file"],
            record["height"],
            record["width"],
        )
        assert len(annotations) == len(record["segments"]) > 0
        for annotation, segment in zip(annotations, record["segments"], strict=True):
            assert (coco.annToMask(annotation) == rle.decode(segment["segmentation"])).all()
            assert coco.cats[annotation["category_id"]]["name"] == segment["category"]
            assert annotation.get("score") == segment["score"] and annotation["area"] == segment["area"]


def test_two_models_stand_side_by_side(cfg, monkeypatch, config_file, tmp_path):
    torch.manual_seed(1)
    other = build_model(tiny_cfg("Mask2Former"))
    other.head.mask_decoder.class_embed.bias.data[-1] = -10
    settings = tiny_cfg("Mask2Former")
    settings.TEST.OBJECT_THRESHOLD = settings.TEST.OVERLAP_THRESHOLD = 0.0
    torch.save({"model": other.state_dict(), "config": settings.dump()}, tmp_path / "other.pth")
    video, image, out = save_video(tmp_path / "a.mp4", 3), save_image(tmp_path / "a.png"), tmp_path / "out"
    both = ["--config-file", config_file, "--compare", str(tmp_path / "other.pth"), "--input", str(video), str(image)]
    assert run(monkeypatch, *both, "--coco", "--output", str(out)) == 0
    assert len(COCO(out / "coco.json").imgs) == 4, "of the first model"
    first, second = (json.loads((out / f"{name}.json").read_text()) for name in ("segments", "compared"))
    assert (first["weights"], second["weights"]) == (cfg.MODEL.WEIGHTS, str(tmp_path / "other.pth"))
    assert len(first["images"]) == len(second["images"]) == 4 and first["images"] != second["images"]
    scale = enlargement(48, 80)
    sheet = np.asarray(Image.open(out / "a.png"))
    assert sheet.shape[0] > 48 * scale and sheet.shape[1] > 2 * 80 * scale
    segment_files(cfg, [str(image)], tmp_path / "alone")
    alone = np.asarray(Image.open(tmp_path / "alone" / "a.png"))
    places = np.lib.stride_tricks.sliding_window_view(sheet[:, :, 0], alone.shape[:2])
    assert any((place == alone[:, :, 0]).all() for row in places for place in row[:40]), "the left one is the first's"
    with VideoReader(out / "a.mp4") as result:
        assert abs(next(iter(result))[1].shape[1] - sheet.shape[1]) <= 1


def test_alpha_is_the_opacity(cfg, tmp_path):
    image = save_image(tmp_path / "a.png", 480, 640)
    pictures = []
    for alpha in (0.0, 1.0):
        segment_files(cfg, [str(image)], tmp_path / "out", Settings("semantic", alpha=alpha))
        pictures.append(np.asarray(Image.open(tmp_path / "out" / "a.png")).astype(int))
    original = np.asarray(Image.open(image)).astype(int)
    share = [(np.abs(picture - original).max(axis=2) == 0).mean() for picture in pictures]
    assert share[0] > 0.5 > share[1], "labels and outlines are opaque"
