"""Videos: each form gives the classes and ids of its files, an image of each frame, and its faults are found."""

from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dformer.d2.data import (
    TrainMapper,
    available_tasks,
    build_train_loader,
    check_datasets,
    register_declarations,
    thing_ids,
)
from dformer.d2.data.inspection import inspect_datasets
from dformer.d2.data.video import FrameSampler
from dformer.data.video import VOID, group_videos, paint_labels, read_segments
from dformer.utils.errors import UserError
from tests.d2.tiny import tiny_cfg
from tests.data import clips

pytestmark = pytest.mark.usefixtures("empty_catalogs")
FORMS = ("davis", "youtube_vis", "kitti_step", "vipseg")


def declare(root, form, **more):
    register_declarations({"clips": {**clips.write(root, form), **more}}, root)
    return DatasetCatalog.get("clips")


@pytest.mark.parametrize("form", FORMS)
def test_the_frames_of_each_form_have_their_classes_and_ids(tmp_path, form):
    videos = group_videos(declare(tmp_path, form))
    panoptic = form in ("kitti_step", "vipseg")
    assert [len(frames) for frames in videos.values()] == [4, 4]
    assert available_tasks("clips") == (("panoptic", "instance", "semantic") if panoptic else ("instance",))
    assert len(thing_ids("clips", "instance")) == (1 if form == "davis" else 2)
    names = MetadataCatalog.get("clips").thing_classes
    for frames, truth in zip(videos.values(), clips.CLIPS.values(), strict=True):
        assert [frame["frame"] for frame in frames] == [0, 5, 10, 15]
        for frame, expected in zip(frames, truth, strict=True):
            labels = paint_labels(read_segments(frame), clips.SIZE)
            ids = expected[..., 1] // 300 if form == "davis" else expected[..., 1]
            np.testing.assert_array_equal(labels[..., 1], ids)
            for value, name in clips.CLASSES.items():
                if name in names and (panoptic or name in clips.THINGS):
                    np.testing.assert_array_equal(labels[..., 0] == names.index(name), expected[..., 0] == value)
            void = expected[..., 0] == clips.VOID if panoptic else ids == 0
            np.testing.assert_array_equal(labels[..., 0] == VOID, void)


@pytest.mark.parametrize("form", FORMS)
def test_a_frame_is_an_image_to_train_on(tmp_path, form):
    records = declare(tmp_path, form)
    cfg = tiny_cfg()
    cfg.merge_from_list(["DATASETS.TRAIN", ("clips",), "INPUT.TASK", "instance", "INPUT.AUGMENTATION", "resize"])
    item = TrainMapper.for_test(cfg)(records[1])
    assert (item["video_id"], item["frame"]) == (("0" if form == "youtube_vis" else "clip0"), 5)
    assert len(item["instances"]) == 2 and item["instances"].gt_masks.flatten(1).any(1).all()


@pytest.mark.parametrize("form", FORMS)
def test_past_maps_have_the_numbers_of_the_frame(tmp_path, form):
    records = declare(tmp_path, form)
    task = "panoptic" if form in ("kitti_step", "vipseg") else "instance"
    opts = [
        "DATASETS.TRAIN",
        ("clips",),
        "INPUT.TASK",
        task,
        "INPUT.TARGET",
        "panoptic_map",
        "MODEL.PIX2SEQD.PAST_MAPS",
    ]
    cfg = tiny_cfg(opts=[*opts, 2, "INPUT.AUGMENTATION", "resize", "INPUT.MIN_SIZE_TRAIN", (24,), "SEED", 1])
    mapper = TrainMapper.for_test(cfg)
    mapper.augmentations = []
    now, before = mapper({**records[2], "past": [None, records[1]]}), mapper(records[1])
    assert now["past_maps"].shape == (2, *clips.SIZE) and not now["past_maps"][0].any()
    same = now["past_maps"][1].unique().tolist()  # the objects are in the same order in both
    assert torch.equal(now["past_maps"][1], before["panoptic_map"]) and len(same) == (4 if task == "panoptic" else 3)
    for item in next(iter(build_train_loader(cfg))):
        assert (item["past_maps"][1].any() or item["frame"] == 0) and item["past_maps"].shape[0] == 2


def test_clips_have_neighbours_of_one_video_and_their_ids(tmp_path):
    records = declare(tmp_path, "kitti_step")
    drawn = [5, 0, 3, 7] * 5
    sampler = FrameSampler(drawn, records, num=3, reach=2, seed=0)
    frames = np.reshape(list(sampler), (-1, 3))
    assert frames[:, 0].tolist() == drawn and list(sampler) == frames.ravel().tolist()
    assert (frames // 4 == frames[:, :1] // 4).all()  # clips of four frames
    assert (abs(np.diff(frames, axis=1)) > 0).all() and (abs(frames - frames[:, :1]) <= 2).all()
    assert set(frames[frames[:, 0] == 5][:, 1:].ravel()) == {4, 6, 7}
    alone = FrameSampler([5], [{"file_name": "a"}] * 9, num=2, reach=2, seed=0)
    assert list(alone) == [5, 5]
    cfg = tiny_cfg(opts=["DATASETS.TRAIN", ("clips",), "INPUT.AUGMENTATION", "resize"])
    instances = TrainMapper.for_test(cfg)(records[1])["instances"]
    assert dict(zip(instances.gt_classes.tolist(), instances.gt_tracks.tolist(), strict=True)) == {0: 300, 1: 600, 2: 0}


def test_a_split_keeps_videos_together(tmp_path):
    register_declarations({"clips": {**clips.write(tmp_path, "davis"), "split": {"val": 1}}}, tmp_path)
    sides = [{r["video_id"] for r in DatasetCatalog.get(f"clips_{side}")} for side in ("train", "val")]
    assert len(sides[0]) == len(sides[1]) == 1 and sides[0] != sides[1]


def test_void_is_no_object(tmp_path):
    declaration = clips.write(tmp_path, "davis")
    file = tmp_path / "ids/clip0/00000.png"
    ids = np.array(Image.open(file))
    ids[:, -1] = 255
    clips.indexed(ids).save(file)
    register_declarations({"clips": declaration, "binary": {**declaration, "classes": {255: "object"}}}, tmp_path)
    assert [s.get("track_id") for s in read_segments(DatasetCatalog.get("clips")[0])] == [1, 2, None]
    assert [s.get("track_id") for s in read_segments(DatasetCatalog.get("binary")[0])] == [1, 2, 255]


def test_faults_of_videos_are_found(tmp_path):
    declaration = clips.write(tmp_path, "davis")
    annotations = tmp_path / "ids"
    for kind, suffix in (("ids", "png"), ("frames", "jpg")):
        (tmp_path / kind / "clip0" / f"00005.{suffix}").unlink()
        with Image.open(tmp_path / kind / "clip1" / f"00000.{suffix}") as picture:
            larger = picture.resize((40, 24), Image.Resampling.NEAREST)
        larger.save(tmp_path / kind / "clip1" / f"00000.{suffix}")
    before = np.array(Image.open(annotations / "clip0" / "00010.png"))
    clips.indexed(np.choose(before, [0, 2, 1]).astype(np.uint8)).save(annotations / "clip0" / "00015.png")
    register_declarations({"clips": declaration}, tmp_path)
    (inspection,) = inspect_datasets(["clips"], progress=False, workers=1)
    found = Counter(f.kind for f in inspection.findings)
    assert found["gap in frames"] == found["size changes"] == 1
    assert found["id jumps"] == 2  # both exchange their ids
    assert not inspection.fatal


def test_several_classes_of_a_track_and_pixels_of_no_class(tmp_path):
    declaration = clips.write(tmp_path, "kitti_step")
    file = tmp_path / "panoptic/clip0/00015.png"
    png = np.array(Image.open(file))
    png[..., 0] = np.choose(png[..., 0] % 4, [0, 2, 1, 255])  # the classes of both things change places
    png[0, 0] = (77, 0, 0)
    Image.fromarray(png).save(file)
    register_declarations({"clips": declaration}, tmp_path)
    (inspection,) = inspect_datasets(["clips"], progress=False, workers=1)
    found = Counter(f.kind for f in inspection.findings)
    assert found["track of several classes"] == 2 and found["unknown segment"] == 1


def test_objects_of_one_class_test_models_of_any_classes(tmp_path):
    for name, form in (("classes", "youtube_vis"), ("one", "davis")):
        (tmp_path / name).mkdir()
        register_declarations({name: clips.write(tmp_path / name, form)}, tmp_path / name)
    cfg = tiny_cfg(opts=["DATASETS.TRAIN", ("classes",), "DATASETS.TEST", ("one",), "INPUT.TASK", "instance"])
    check_datasets(cfg)
    cfg.merge_from_list(["DATASETS.TRAIN", ("one",), "DATASETS.TEST", ("classes",)])
    with pytest.raises(UserError, match="classes"):
        check_datasets(cfg)


@pytest.mark.parametrize("key, wrong", [("things", ["cat"]), ("things", "disc"), ("classes", {}), ("void", "no")])
def test_wrong_declarations_are_named(tmp_path, key, wrong):
    declaration = clips.write(tmp_path, "kitti_step")
    with pytest.raises(UserError, match=key):
        register_declarations({"x": {**declaration, key: wrong}}, tmp_path)


def test_a_mask_of_no_frame_is_named(tmp_path):
    declaration = clips.write(tmp_path, "youtube_vis")
    file = tmp_path / "videos.json"
    file.write_text(file.read_text().replace('"video_id": 1', '"video_id": 9'))
    register_declarations({"x": declaration}, tmp_path)
    with pytest.raises(UserError, match="video 9"):
        DatasetCatalog.get("x")
