"""Whole inputs of each kind, and random damages to them."""

import copy
import io
import json
import pickle
import struct
import zipfile
import zlib
from random import Random
from typing import Any

import numpy as np
import torch
from panopticapi.utils import id2rgb
from PIL import Image
from safetensors.torch import save as save_safetensors

SIZE = 24  # of images

ODD: list[Any] = [None, True, 0, -1, 7, 0.5, 2**31, 10**30, 1e308, float("nan"), float("inf"), "", "a", [], [7], [[]]]
ODD += [{}, [10**6, 10**6], {"size": [10**6, 10**6], "counts": "0"}, {"size": [24, 24], "counts": [10**12]}, {"id": 1}]


def damaged(random: Random, content: bytes) -> bytes:
    """Bytes that are flipped, cut, inserted, repeated or overwritten at some places."""
    for _ in range(random.randrange(6)):
        at = random.randrange(len(content) + 1)
        rest, new = content[at:], random.randbytes(random.randrange(1, 9))
        flipped = bytes(a ^ b for a, b in zip(rest, new, strict=False)) + rest[len(new) :]
        overwritten = random.choice([b"\0", b"\xff"]) * 4 + rest[4:]
        content = content[:at] + random.choice([flipped, b"", new + rest, rest[:64] + rest, overwritten])
    return content


def changed(random: Random, content: Any) -> Any:
    """JSON with a value that is replaced, removed or repeated."""
    content = copy.deepcopy(content)
    holder, key = random.choice(_places(content))
    match random.randrange(4):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.append(holder[key])
        case _:
            holder[key] = copy.deepcopy(random.choice(ODD))
    return content


def _places(value: Any) -> list[tuple[Any, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, entry in entries for place in ((value, key), *_places(entry))]


# Checkpoints

WEIGHTS = {"stem.weight": torch.arange(6.0).reshape(2, 3), "stem.steps": torch.tensor(3)}
ARRAYS = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}
GLOBALS = [
    *("os system", "builtins eval", "builtins getattr", "__builtin__ bytes", "subprocess Popen", "shutil rmtree"),
    *("builtins bytearray", "collections OrderedDict", "numpy dtype", "numpy.core.multiarray _reconstruct"),
    *("_codecs encode", "numpy.core.numeric _frombuffer", "torch._utils _rebuild_tensor_v2", "torch Size"),
    *("torch FloatStorage", "torch.storage _load_from_bytes", "torch._utils _rebuild_meta_tensor_no_storage"),
]


def _saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


CHECKPOINTS = {
    "whole.pth": _saved({"model": WEIGHTS, "iteration": 7, "config": "VERSION: 2"}),
    "old.pth": _saved({"model": WEIGHTS}, _use_new_zipfile_serialization=False),
    "zoo.pkl": pickle.dumps({"model": ARRAYS, "__author__": "x"}, protocol=2),
    "flat.safetensors": save_safetensors(WEIGHTS),
}


def calling(name: str, *arguments: Any) -> bytes:
    """A pickle whose state dict calls `name`, "<module> <attribute>"."""
    call = f"c{name}\n".replace(" ", "\n").encode() + pickle.dumps(arguments, 2)[2:-1] + b"R"
    return b"\x80\x02}" + pickle.dumps("model", 2)[2:-1] + b"}" + pickle.dumps("stem", 2)[2:-1] + call + b"ss."


def crafted(random: Random) -> tuple[str, bytes]:
    """A pickle that calls something, as a file of a model zoo or in PyTorch's archive."""
    arguments = [random.choice([*ODD, b"x", "echo no > ran", (), (1, "cpu")]) for _ in range(random.randrange(5))]
    content = calling(random.choice(GLOBALS), *arguments)
    if random.random() < 0.5:
        return "crafted.pkl", content
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, part in (("data.pkl", content), ("version", "3\n"), ("byteorder", "little")):
            archive.writestr(f"archive/{name}", part)
    return "crafted.pth", stream.getvalue()


# Images


def _image(form: str, pixels: np.ndarray | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    random = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(random if pixels is None else pixels).save(stream, form, **options)
    return stream.getvalue()


def png(width: int, height: int, bits: int = 8, kind: int = 2) -> bytes:
    """A PNG whose header claims this size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def claiming(content: bytes, side: int) -> bytes:
    """An image whose header claims another size, wherever its own is as two or four bytes."""
    for form in ("<H", ">H", "<I", ">I"):
        limit = 2 ** (8 * struct.calcsize(form)) - 1
        content = content.replace(struct.pack(form, SIZE) * 2, struct.pack(form, min(side, limit)) * 2)
    return content


PICTURES = {form: _image(form) for form in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "JPEG2000")}
PICTURES["deflated.TIFF"] = _image("TIFF", compression="tiff_adobe_deflate")
PICTURES["EPS"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\n(ran) (w) file closefile\n"


def image(random: Random) -> bytes:
    """An image that is damaged or claims any size."""
    content = damaged(random, random.choice(list(PICTURES.values())))
    sides = [0, 1, 24, 9999, 20000, 65535, 10**5, 2**31 - 1]
    match random.randrange(4):
        case 0:
            return claiming(content, random.choice(sides))
        case 1:
            return png(random.choice(sides), random.choice(sides), random.choice([1, 8, 16]), random.choice([0, 2, 3]))
    return content


# COCO's annotations

_IDS = np.zeros((SIZE, SIZE), np.int64)
_IDS[2:12, 3:13], _IDS[12:20, 4:20] = 7, 300
PANOPTIC_PNG = _image("PNG", id2rgb(_IDS))
_SEGMENT = {"iscrowd": 0, "area": 100, "bbox": [3, 2, 10, 10]}
_LISTED = [{"id": 1, "file_name": "a.png", "height": SIZE, "width": SIZE}]
_SEGMENTS = [{"id": 7, "category_id": 1, **_SEGMENT}, {"id": 300, "category_id": 2, **_SEGMENT}]
_SEGMENTATIONS: list[Any] = [
    [[3.0, 2.0, 13.0, 2.0, 13.0, 12.0, 3.0, 12.0]],
    {"size": [SIZE, SIZE], "counts": [100, 50, SIZE * SIZE - 150]},
    {"size": [SIZE, SIZE], "counts": "T3b1f0"},
]
PANOPTIC = {
    "images": _LISTED,
    "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": _SEGMENTS}],
    "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
}
INSTANCES = {
    "images": _LISTED,
    "annotations": [
        {"id": k, "image_id": 1, "category_id": 1, **_SEGMENT, "segmentation": segmentation}
        for k, segmentation in enumerate(_SEGMENTATIONS, start=1)
    ],
    "categories": [{"id": 1, "name": "cat"}],
}
FORMS = {"coco_panoptic": PANOPTIC, "coco_instances": INSTANCES}


def annotations(random: Random, form: str) -> bytes:
    """JSON of a form with some changes, or with damaged bytes."""
    content: Any = FORMS[form]
    for _ in range(random.randrange(1, 4)):
        content = changed(random, content)
    text = json.dumps(content).encode()
    return damaged(random, text) if random.random() < 0.2 else text
