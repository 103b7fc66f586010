"""Two small clips with known classes and ids, written in each form of videos."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dformer.data.segmentations import encode_mask, json_rle

CLASSES = {0: "ground", 1: "disc", 2: "square"}  # a thing has ids
THINGS = ["disc", "square"]
VOID = 255
SIZE = (24, 32)


def clip(seed: int, frames: int = 4) -> np.ndarray:
    """Values of classes and ids (T, H, W, 2): two things that move over the ground; the last column is void."""
    labels = np.zeros((frames, *SIZE, 2), np.int32)
    labels[:, :, -1, 0] = VOID
    for t in range(frames):
        for number, (value, left) in enumerate(((1, 2 + 2 * t + seed), (2, 20 - 2 * t)), start=1):
            top = 12 * (number - 1) + 2
            labels[t, top : top + 8, left : left + 8] = value, 300 * number + seed  # ids of more than 8 bits
    return labels


CLIPS = {f"clip{seed}": clip(seed) for seed in range(2)}


def indexed(ids: np.ndarray) -> Image.Image:
    """A picture of ids with a palette, as DAVIS has it."""
    picture = Image.fromarray(ids, "P")
    picture.putpalette([*range(256)] * 3)
    return picture


def write(root: Path, form: str) -> dict[str, Any]:
    """Write the clips below `root`, and return their declaration."""
    for name, labels in CLIPS.items():
        (root / "frames" / name).mkdir(parents=True)
        for t, frame in enumerate(labels):
            Image.fromarray((60 * frame[..., [0, 0, 1]] % 256).astype(np.uint8)).save(
                _file(root, "frames", name, t, "jpg")
            )
    return {"images": "frames", **globals()[f"_{form}"](root)}


def _file(root: Path, kind: str, name: str, t: int, suffix: str = "png") -> Path:
    return root / kind / name / f"{5 * t:05d}.{suffix}"


def _davis(root: Path) -> dict[str, Any]:
    for name, labels in CLIPS.items():
        (root / "ids" / name).mkdir(parents=True)
        for t, frame in enumerate(labels):
            indexed((frame[..., 1] // 300).astype(np.uint8)).save(_file(root, "ids", name, t))
    return {"form": "davis", "annotations": "ids"}


def _kitti_step(root: Path) -> dict[str, Any]:
    for name, labels in CLIPS.items():
        (root / "panoptic" / name).mkdir(parents=True)
        for t, frame in enumerate(labels):
            value, track = frame[..., 0], frame[..., 1]
            png = np.stack([value, track // 256, track % 256], axis=2).astype(np.uint8)
            Image.fromarray(png).save(_file(root, "panoptic", name, t))
    return {"form": "kitti_step", "annotations": "panoptic", "classes": CLASSES, "things": THINGS}


def _vipseg(root: Path) -> dict[str, Any]:
    videos, annotations = [], []
    for name, labels in CLIPS.items():
        (root / "pngs" / name).mkdir(parents=True)
        images, frames = [], []
        for t, frame in enumerate(labels):
            ids = np.where(frame[..., 0] == VOID, 0, np.where(frame[..., 1] > 0, frame[..., 1], 7))
            png = np.stack([ids % 256, ids // 256, 0 * ids], axis=2).astype(np.uint8)
            Image.fromarray(png).save(_file(root, "pngs", name, t))
            pairs = {int(ids[y, x]): int(frame[y, x, 0]) for y, x in np.argwhere(ids > 0)}
            segments = [{"id": i, "category_id": c, "iscrowd": 0} for i, c in pairs.items()]
            stem = f"{5 * t:05d}"
            frames.append({"image_id": stem, "file_name": f"{stem}.png", "segments_info": segments})
            images.append({"id": stem, "file_name": f"{stem}.jpg", "height": SIZE[0], "width": SIZE[1]})
        videos.append({"video_id": name, "images": images})
        annotations.append({"video_id": name, "annotations": frames})
    categories = [{"id": v, "name": n, "isthing": int(n in THINGS)} for v, n in CLASSES.items()]
    content = {"videos": videos, "annotations": annotations, "categories": categories}
    (root / "panoptic.json").write_text(json.dumps(content))
    return {"form": "vipseg", "annotations": "panoptic.json", "pngs": "pngs"}


def _youtube_vis(root: Path) -> dict[str, Any]:
    videos, tracks = [], []
    for k, (name, labels) in enumerate(CLIPS.items()):
        files = [f"{name}/{5 * t:05d}.jpg" for t in range(len(labels))]
        videos.append({"id": k, "file_names": files, "height": SIZE[0], "width": SIZE[1], "length": len(files)})
        for track in np.unique(labels[..., 1][labels[..., 1] > 0]).tolist():
            masks = labels[..., 1] == track
            segmentations = [json_rle(encode_mask(mask)) if mask.any() else None for mask in masks]
            value = int(labels[..., 0][masks][0])
            tracks.append({"id": track, "video_id": k, "category_id": value, "segmentations": segmentations})
    categories = [{"id": v, "name": n} for v, n in CLASSES.items() if n in THINGS]
    (root / "videos.json").write_text(json.dumps({"videos": videos, "annotations": tracks, "categories": categories}))
    return {"form": "youtube_vis", "annotations": "videos.json"}
