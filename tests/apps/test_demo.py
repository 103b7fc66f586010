"""The demo from the command line to its files, with a tiny model of random weights."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from dformer.apps.demo import Settings, segment_files
from dformer.apps.demo.inputs import find_inputs, output_files
from dformer.utils.errors import UserError
from dformer.visualize import enlargement
from dformer.visualize.files import VideoReader, VideoWriter
from tests import ROOT, run_script
from tests.d2.tiny import random_model

RANDOM = np.random.default_rng(0)
SHAPES = {"disc", "square", "triangle", "star", "grass", "water", "brick"}


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("weights") / "model.pth")


run = partial(run_script, "tools/demo.py")


def save_image(file: Path, height: int = 48, width: int = 80, mode: str = "RGB", **options) -> Path:
    file.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), np.uint8)).convert(mode).save(file, **options)
    return file


def save_video(file: Path, count: int = 10) -> Path:
    with VideoWriter(file, fps=20) as video:
        for k in range(count):
            video.write(np.full((48, 80, 3), 20 * k % 256, np.uint8))
    return file


def records(output: Path) -> list[dict]:
    return json.loads((output / "segments.json").read_text())["images"]


@pytest.mark.parametrize(("task", "threshold"), [("panoptic", 0.0), ("instance", 0.0), ("semantic", None)])
def test_pictures_and_segments(cfg, tmp_path, task, threshold):
    sizes = {save_image(tmp_path / "a.jpg"): (48, 80), save_image(tmp_path / "b.png", 130, 40): (130, 40)}
    assert segment_files(cfg, [str(tmp_path)], tmp_path / "out", Settings(task, threshold, coco=True)) == []
    coco = COCO(tmp_path / "out" / "coco.json")
    for image_id, (file, (height, width)) in enumerate(sizes.items(), start=1):
        record = records(tmp_path / "out")[image_id - 1]
        assert record["file"] == coco.imgs[image_id]["file_name"] == str(file)
        assert record.items() > {"height": height, "width": width}.items() < coco.imgs[image_id].items()
        covered = np.zeros((height, width), int)
        annotations = coco.loadAnns(coco.getAnnIds([image_id]))
        for number, (segment, annotation) in enumerate(zip(record["segments"], annotations, strict=True), start=1):
            mask = rle.decode(segment["segmentation"])
            y, x = np.nonzero(mask)
            assert segment["area"] == mask.sum() > 0
            assert segment["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
            assert segment["category"] in SHAPES and segment["id"] == number
            assert segment["isthing"] == (segment["category_id"] < 4 and task != "semantic")
            assert (segment["score"] is None) == (task == "semantic")
            assert (coco.annToMask(annotation) == mask).all()
            assert coco.cats[annotation["category_id"]]["name"] == segment["category"]
            assert annotation.get("score") == segment["score"] and annotation["area"] == segment["area"]
            covered += mask
        assert covered.max() == 1 or (task == "instance" and covered.max() > 0)
        assert covered.min() == 1 or task != "semantic"
        scale = enlargement(height, width)
        picture = np.asarray(Image.open(tmp_path / "out" / record["picture"]))
        drawn = (picture != np.asarray(Image.open(file).resize((width * scale, height * scale)))).any(axis=2)
        assert drawn[covered.repeat(scale, axis=0).repeat(scale, axis=1) > 0].mean() > 0.95


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_segments_below_the_threshold_are_left_out(cfg, tmp_path, task):
    file = str(save_image(tmp_path / "a.png"))
    segment_files(cfg, [file], tmp_path / "all", Settings(task, 0.0))
    scores = sorted(segment["score"] for segment in records(tmp_path / "all")[0]["segments"])
    threshold = (scores[0] + scores[-1]) / 2
    segment_files(cfg, [file], tmp_path / "some", Settings(task, threshold))
    high = [segment["score"] for segment in records(tmp_path / "some")[0]["segments"]]
    assert len(high) < len(scores) and all(score >= threshold for score in high)


def test_large_images_are_drawn_smaller_and_their_segments_are_not(cfg, tmp_path):
    file = save_image(tmp_path / "a.jpg", 1800, 2700)
    segment_files(cfg, [str(file)], tmp_path / "out", Settings("semantic"))
    assert Image.open(tmp_path / "out" / "a.png").size == (1764, 1176)
    (record,) = records(tmp_path / "out")
    assert (record["height"], record["width"]) == (1800, 2700)
    assert all(segment["segmentation"]["size"] == [1800, 2700] for segment in record["segments"])
    assert sum(segment["area"] for segment in record["segments"]) == pytest.approx(1800 * 2700, rel=0.01)


def test_unreadable_files_are_named_and_skipped(cfg, tmp_path, capsys):
    save_image(tmp_path / "good.jpg")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(save_image(tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "empty.bmp").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "cut.avi").write_bytes(save_video(tmp_path / "whole.avi", 40).read_bytes()[:9000])
    names = ["good.jpg", "text.jpg", "cut.png", "empty.bmp", "text.mp4", "cut.avi", "missing.jpg", "none*.jpg"]
    inputs = ["https://example.org/a.jpg", *(tmp_path / name for name in names)]
    names.append(inputs[0])
    assert run("--weights", cfg.MODEL.WEIGHTS, "--output", tmp_path / "out", "--input", *inputs) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
    assert all(any(name in line for line in errors) for name in names[1:]) and len(errors) == len(names) - 1
    assert set(os.listdir(tmp_path / "out")) - {"cut.mp4"} == {"good.png", "segments.json"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--task", "video"], "'video'"),
        (["--steps", "0"], "DIFFUSION.SAMPLING_STEPS"),
        (["--threshold", "1.5"], "threshold"),
        (["--task", "semantic", "--threshold", "0.5"], "threshold"),
        (["--alpha", "-1"], "alpha"),
        (["--every", "0"], "every"),
        (["--compare", "no.pth"], "no.pth"),
        (["--opts", "MODEL.WEIGHT", "a.pth"], '"MODEL.WEIGHTS"'),
        (["--input"], "--input"),
    ],
)
def test_wrong_arguments_are_named(cfg, tmp_path, capsys, arguments, named):
    image = save_image(tmp_path / "a.jpg")
    usual = ["--weights", cfg.MODEL.WEIGHTS, "--output", tmp_path / "out", "--input", image]
    assert run(*usual, *arguments) == 2
    assert named in capsys.readouterr().err


def test_weights_without_a_config_need_a_config_file(cfg, tmp_path, capsys):
    torch.save({"model": torch.load(cfg.MODEL.WEIGHTS)["model"]}, tmp_path / "bare.pth")
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    usual = ["--input", save_image(tmp_path / "a.jpg"), "--output", tmp_path / "out"]
    assert run(*usual, "--weights", tmp_path / "bare.pth", "--config-file", tmp_path / "tiny.yaml") == 0
    assert run(*usual, "--weights", tmp_path / "bare.pth") == 2
    assert "bare.pth" in capsys.readouterr().err
    assert run(*usual) == 2
    assert "--weights" in capsys.readouterr().err


def test_the_seed_and_the_steps(cfg, tmp_path):
    image = save_image(tmp_path / "a.jpg")
    found = []
    for name, seed, steps in [("one", 1, 1), ("again", 1, 1), ("two", 2, 1), ("steps", 1, 2)]:
        arguments = ["--output", tmp_path / name, "--seed", seed, "--steps", steps, "--threshold", 0]
        assert run("--weights", cfg.MODEL.WEIGHTS, "--input", image, *arguments) == 0
        found.append(records(tmp_path / name))
    assert found[0] == found[1] and found[0] != found[2] and found[0] != found[3]
    assert json.loads((tmp_path / "one/segments.json").read_text())["weights"] == cfg.MODEL.WEIGHTS


@pytest.mark.parametrize(
    ("files", "results"),
    [
        (["x/a.jpg", "y/a.jpg", "z/a-2.jpg"], ["a.png", "a-2.png", "a-2-2.png"]),
        (["x/a.jpg", "y/A.png", "out/a.png"], ["a-2.png", "A-3.png", "a-4.png"]),
    ],
)
def test_results_overwrite_neither_each_other_nor_the_inputs(files, results):
    assert [file.name for file in output_files([Path(file) for file in files], Path("out"))] == results


def test_inputs_may_be_files_folders_and_patterns(tmp_path):
    for name in ("b.jpg", "a.PNG", "deep/c.jpg", "[1].jpg"):
        save_image(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "bare").mkdir()

    def names(*inputs: str) -> list[str]:
        return [file.name for file in find_inputs([str(tmp_path / name) for name in inputs])[0]]

    assert names("") == ["[1].jpg", "a.PNG", "b.jpg"]
    assert names("*.jpg", "b.jpg", "deep/../b.jpg") == ["[1].jpg", "b.jpg"]
    assert names("**/c.jpg") == ["c.jpg"]
    assert names("[1].jpg") == ["[1].jpg"], "a file may be named like a pattern"
    files, (problem,) = find_inputs([str(tmp_path / "bare")])
    assert files == [] and str(tmp_path / "bare") in problem


def test_folders_in_a_folder_on_request(cfg, tmp_path):
    for name in ("a.jpg", "deep/b.jpg", "deep/deeper/c.jpg", "out/d.jpg"):
        save_image(tmp_path / name)
    flat, deep, elsewhere = (
        [file.name for file in find_inputs([str(tmp_path)], recursive, output)[0]]
        for recursive, output in ((False, None), (True, tmp_path / "out"), (True, tmp_path / "other"))
    )
    assert flat == ["a.jpg"] and elsewhere == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert deep == ["a.jpg", "b.jpg", "c.jpg"], "not the results of a run before"
    arguments = ["--weights", cfg.MODEL.WEIGHTS, "--input", tmp_path, "--output", tmp_path / "out"]
    assert run(*arguments, "--recursive") == 0
    assert [Path(record["file"]).name for record in records(tmp_path / "out")] == deep


def test_a_batch_of_images_has_the_results_of_each(cfg, tmp_path):
    inputs = [save_image(tmp_path / f"{k}.png", *size) for k, size in enumerate([(48, 80), (70, 40), (48, 80)])]
    inputs.insert(1, tmp_path / "missing.jpg")
    inputs += [save_video(tmp_path / "v.mp4", 2), save_image(tmp_path / "last.png")]
    found = []
    for batch in (1, 3):
        problems = segment_files(cfg, [str(file) for file in inputs], tmp_path / f"by {batch}", Settings(batch=batch))
        assert len(problems) == 1 and "missing.jpg" in problems[0]
        found.append(records(tmp_path / f"by {batch}"))
    assert [Path(record["file"]).stem for record in found[0]] == ["0", "1", "2", "v", "v", "last"]
    for one, other in zip(*found, strict=True):
        assert (one["file"], one["picture"]) == (other["file"], other["picture"])
        areas = [[segment["area"] for segment in record["segments"]] for record in (one, other)]
        assert areas[0] == pytest.approx(areas[1], abs=3) and areas[0], "but for rounding"


def test_no_labels_on_request(cfg, tmp_path):
    Image.new("RGB", (80, 48), "white").save(tmp_path / "a.png")
    darkest = []
    for options in ([], ["--no-labels", "--color-by", "instance"]):
        arguments = ["--input", tmp_path / "a.png", "--threshold", 0, "--output", tmp_path / "out", *options]
        assert run("--weights", cfg.MODEL.WEIGHTS, *arguments) == 0
        darkest.append(np.asarray(Image.open(tmp_path / "out" / "a.png")).max(axis=2).min())
    assert darkest[0] < 60 < darkest[1], "letters are black"


def test_without_detectron2_it_says_how_to_install_it(tmp_path):
    (tmp_path / "detectron2.py").write_text("raise ModuleNotFoundError(name='detectron2')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    load = "import dformer; dformer.load('dformer://shapes')"
    for command in (["tools/demo.py", "--input", "a.jpg", "--output", str(tmp_path / "out")], ["-c", load]):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode and "dformer install-detectron2" in done.stderr.splitlines()[-1]
        assert command[0] == "-c" or "Traceback" not in done.stderr


def test_frames_of_a_video_have_the_results_of_images(cfg, tmp_path):
    video = save_video(tmp_path / "a.mp4")
    assert segment_files(cfg, [str(video)], tmp_path / "video", Settings(batch=4)) == []
    found = records(tmp_path / "video")
    assert [(record["file"], record["frame"]) for record in found] == [(str(video), k) for k in range(10)]
    with VideoReader(tmp_path / "video" / "a.mp4") as result:
        shapes = [frame.shape for _, frame in result]
        assert result.fps == 20 and shapes == 10 * [(48 * enlargement(48, 80), 80 * enlargement(48, 80), 3)]
    with VideoReader(video) as reader:
        frames = [frame for _, frame in reader]
    for k in (0, 7, 9):
        Image.fromarray(frames[k]).save(tmp_path / "frame.png")
        segment_files(cfg, [str(tmp_path / "frame.png")], tmp_path / "image")
        (single,) = records(tmp_path / "image")
        assert len(single["segments"]) == len(found[k]["segments"]) > 0
        for one, other in zip(single["segments"], found[k]["segments"], strict=True):
            assert one["category"] == other["category"] and one["score"] == pytest.approx(other["score"], abs=1e-5)
            assert "track_id" not in one and ("track_id" in other) == other["isthing"]
            same = rle.decode(one["segmentation"]) == rle.decode(other["segmentation"])
            assert same.shape == (48, 80) and same.mean() > 0.999, "but for rounding"


class Camera:  # no subclass: OpenCV's classes corrupt the memory as soon as an instance of one is deleted
    """Replace OpenCV's capture of a camera by that of a video, which ends with Ctrl-C."""

    def __init__(self, video: Path) -> None:
        self.capture = cv2.VideoCapture(str(video))

    def __getattr__(self, name: str):
        return getattr(self.capture, name)

    def grab(self) -> bool:
        return self.capture.grab() or signal.raise_signal(signal.SIGINT)


def test_ctrl_c_ends_a_camera_and_leaves_whole_files(cfg, tmp_path, monkeypatch):
    camera, capture, out = Camera(save_video(tmp_path / "a.mp4", 18)), cv2.VideoCapture, tmp_path / "out"
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: camera if source == 2 else capture(source))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what runs in the background
    arguments = ["--input", save_image(tmp_path / "a.png"), "--camera", 2, "--every", 3, "--batch", 3, "--coco"]
    try:
        assert run("--weights", cfg.MODEL.WEIGHTS, *arguments, "--output", out) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(os.listdir(out)) == ["a.png", "camera-2.mp4", "coco.json", "segments.json"]
    with VideoReader(out / "camera-2.mp4") as video:
        assert video.fps == pytest.approx(20 / 3, abs=0.01) and len(list(video)) == 6
    assert [record.get("frame") for record in records(out)] == [None, 0, 3, 6, 9, 12, 15]
    assert len(COCO(out / "coco.json").imgs) == 7


def test_an_error_leaves_no_unfinished_files(cfg, tmp_path):
    save_video(tmp_path / "b.mp4")
    (tmp_path / "out" / "b.mp4").mkdir(parents=True)
    with pytest.raises(UserError, match=r"out/b\.mp4"):
        segment_files(cfg, [str(tmp_path)], tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["b.mp4"]
    with pytest.raises(UserError, match=r"a\.png"):
        segment_files(cfg, [str(tmp_path)], save_image(tmp_path / "a.png"))


def test_two_models_side_by_side(cfg, tmp_path):
    other = random_model(tmp_path / "other.pth", "Mask2Former").MODEL.WEIGHTS
    video, image, out = save_video(tmp_path / "a.mp4", 3), save_image(tmp_path / "a.png"), tmp_path / "out"
    arguments = ["--weights", cfg.MODEL.WEIGHTS, "--compare", other, "--input", video, image, "--coco"]
    assert run(*arguments, "--output", out) == 0
    assert len(COCO(out / "coco.json").imgs) == 4, "of the first model"
    first, second = (json.loads((out / f"{name}.json").read_text()) for name in ("segments", "compared"))
    assert (first["weights"], second["weights"]) == (cfg.MODEL.WEIGHTS, other)
    assert len(first["images"]) == len(second["images"]) == 4 and first["images"] != second["images"]
    segment_files(cfg, [str(image)], tmp_path / "alone")
    sheet, alone = (np.asarray(Image.open(folder / "a.png"))[:, :, 0] for folder in (out, tmp_path / "alone"))
    assert sheet.shape[1] > 2 * alone.shape[1]
    places = np.lib.stride_tricks.sliding_window_view(sheet, alone.shape)
    assert any((place == alone).all() for row in places for place in row[:40]), "the first model is on the left"
    with VideoReader(out / "a.mp4") as result:
        assert abs(next(iter(result))[1].shape[1] - sheet.shape[1]) <= 1


@pytest.fixture(scope="module")
def listening(tmp_path_factory):
    """A model that takes masks."""
    return random_model(tmp_path_factory.mktemp("weights") / "model.pth", opts=["DIFFUSION.ASSIGNMENT", "denoising"])


def test_coarse_segments_are_refined_in_their_order(listening, tmp_path):
    ids = np.zeros((48, 80), np.uint8)
    ids[:20, :30], ids[25:, 40:] = 7, 3
    Image.fromarray(ids).save(tmp_path / "coarse.png")
    image = str(save_image(tmp_path / "a.jpg"))
    settings = Settings(refine=str(tmp_path / "coarse.png"))
    assert segment_files(listening, [image], tmp_path / "out", settings) == []
    (record,) = records(tmp_path / "out")
    assert len(record["segments"]) == 2 and (tmp_path / "out" / record["picture"]).exists()


def test_several_answers_have_a_picture_of_where_they_disagree(listening, tmp_path):
    image = str(save_image(tmp_path / "a.jpg"))
    for name, samples in (("one", None), ("merged", 2)):
        assert segment_files(listening, [image], tmp_path / name, Settings(samples=samples)) == []
    one, merged = (Image.open(tmp_path / name / records(tmp_path / name)[0]["picture"]) for name in ("one", "merged"))
    assert merged.width > 2 * one.width
    with pytest.raises(UserError, match="samples"):
        segment_files(listening, [image], tmp_path / "out", Settings(samples=2, refine="coarse.png"))
