"""Inputs that went wrong on the way: whole ones with a few edits, and made-up ones."""

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from hypothesis import strategies as st
from panopticapi.utils import id2rgb
from PIL import Image
from safetensors.torch import save as save_safetensors

from dformer.d2.config import get_cfg

SIZE = 24  # of images

# Values that are not what was expected.

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([0, -1, 2**31, 2**63, 10**30, -(10**30), 1e308, -1e308, float("nan"), float("inf"), 0.5]),
    st.text(max_size=8),
    st.lists(st.integers(-5, 5) | st.floats(), max_size=7),
    st.recursive(st.integers() | st.none(), lambda inner: st.lists(inner, max_size=3), max_leaves=8),
    st.dictionaries(st.sampled_from(["id", "counts", "size", "a"]), st.integers() | st.text(max_size=3), max_size=3),
    st.sampled_from([[10**6, 10**6], {"size": [10**6, 10**6], "counts": "0"}, {"size": [24, 24], "counts": [10**12]}]),
)

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "repeat", "zero", "ones"]), st.floats(0, 1), st.binary(max_size=8)
    ),
    max_size=6,
)


def edited(content: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """Bytes after damages, each at a place in 0..1."""
    for kind, place, new in edits:
        at = int(place * len(content))
        rest = content[at:]
        if kind == "flip":
            rest = bytes(a ^ b for a, b in zip(rest, new, strict=False)) + rest[len(new) :]
        elif kind == "cut":
            rest = b""
        elif kind == "insert":
            rest = new + rest
        elif kind == "repeat":
            rest = rest[:64] + rest
        else:
            rest = (b"\0" if kind == "zero" else b"\xff") * min(4, len(rest)) + rest[4:]
        content = content[:at] + rest
    return content


@st.composite
def damaged(draw: Callable, wholes: dict[str, bytes]) -> tuple[str, bytes]:
    """The name of one of `wholes`, and that with edits."""
    name = draw(st.sampled_from(sorted(wholes)))
    return name, edited(wholes[name], draw(EDITS))


# Configs

_CFG = get_cfg()


def _keys(node: CfgNode, prefix: str = "") -> list[str]:
    return [
        key
        for name, value in node.items()
        for key in (_keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [prefix + name])
    ]


KEYS = st.sampled_from(_keys(_CFG)) | st.text(max_size=12) | st.sampled_from(["MODEL", "SOLVER.", "_BASE_", "VERSION"])
WORDS = (
    ODD.map(repr) | st.text(max_size=20) | st.sampled_from(["(" * 500, "[" * 3000, "9" * 5000, "9**9**9", "\0", "()"])
)
OVERRIDES = st.lists(st.tuples(KEYS, WORDS), max_size=4).map(lambda pairs: [word for pair in pairs for word in pair])


def _nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(9 * [f'*{a}'])}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = st.one_of(
    st.tuples(KEYS, ODD).map(lambda pair: yaml.safe_dump(_nested(*pair))),
    st.text(max_size=60),
    st.sampled_from(
        [
            BOMB,
            BOMB.replace("[", "{k0: ").replace(", ", ", k: "),
            "[" * 5000,
            "a: " * 500,
            "!!python/object/apply:os.system [ls]",
        ]
        + [
            "a: &a\n  b: *a",
            "_BASE_: config.yaml",
            "_BASE_: [1]",
            "_BASE_: /proc/self/mem",
            "2024-99-99",
            "<<: 1",
            "- 1",
            "",
        ]
    ),
    st.tuples(st.just(yaml.safe_dump({"MODEL": {"MASK_DECODER": {"NUM_QUERIES": 8}}}).encode()), EDITS).map(
        lambda pair: edited(*pair).decode("latin1")
    ),
)

# Checkpoints

WEIGHTS = {"stem.weight": torch.arange(6.0).reshape(2, 3), "stem.steps": torch.tensor(3)}
ARRAYS = {"stem.weight": np.arange(6.0).reshape(2, 3), "stem.steps": np.array(3)}
GLOBALS = [
    *("os system", "posix system", "builtins eval", "builtins exec", "builtins getattr", "__builtin__ bytes"),
    *("subprocess Popen", "runpy run_path", "shutil rmtree", "builtins bytearray", "collections OrderedDict"),
    *("collections Counter", "numpy dtype", "numpy ndarray", "numpy.core.multiarray _reconstruct", "_codecs encode"),
    *("numpy.core.numeric _frombuffer", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"),
    *("torch Size", "torch device", "torch FloatStorage", "torch.storage _load_from_bytes", "torch.serialization load"),
    *(
        "torch._utils _rebuild_meta_tensor_no_storage",
        "torch._utils _rebuild_sparse_tensor",
        "torch.nn.parameter Parameter",
    ),
]
ATOMS = st.one_of(
    st.integers(-(2**40), 2**40),
    st.text(max_size=5),
    st.binary(max_size=9),
    st.none(),
    st.floats(),
    st.just("echo no > ran"),
)
ARGUMENTS = st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=6)


def _saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


CHECKPOINTS = {
    "whole.pth": _saved({"model": WEIGHTS, "iteration": 7, "config": "VERSION: 2"}),
    "bare.pth": _saved(WEIGHTS),
    "old.pth": _saved({"model": WEIGHTS}, _use_new_zipfile_serialization=False),
    "zoo.pkl": pickle.dumps({"model": ARRAYS, "__author__": "x"}, protocol=2),
    "new.pkl": pickle.dumps({"model": ARRAYS}, protocol=4),
    "flat.safetensors": save_safetensors(WEIGHTS),
}


@st.composite
def crafted(draw: Callable) -> tuple[str, bytes]:
    """A pickle that calls something, in a state dict, as a file of the model zoos or in PyTorch's archive."""
    module, name = draw(st.sampled_from(GLOBALS)).split(" ")
    arguments = draw(st.lists(ARGUMENTS, max_size=5).map(tuple))
    call = f"c{module}\n{name}\n".encode() + pickle.dumps(arguments, 2)[2:-1] + b"R"
    if draw(st.booleans()):
        call += pickle.dumps(draw(ARGUMENTS), 2)[2:-1] + b"b"  # its state
    content = b"\x80\x02}" + pickle.dumps("model", 2)[2:-1] + b"}" + pickle.dumps("stem", 2)[2:-1] + call + b"ss."
    if draw(st.booleans()):
        return "crafted.pkl", content
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return "crafted.pth", stream.getvalue()


# Images


def _pixels() -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8))


def _image(form: str, mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    _pixels().convert(mode).save(stream, form, **options)
    return stream.getvalue()


def _png(width: int, height: int, bits: int = 8, kind: int = 2, data: bytes = b"\0" * 100) -> bytes:
    """A PNG that says that it has this size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _claiming(content: bytes, side: int) -> bytes:
    """A picture whose header claims another size, wherever its own stands as two bytes or four."""
    for form in ("<H", ">H", "<I", ">I"):
        limit = 2 ** (8 * struct.calcsize(form)) - 1
        content = content.replace(struct.pack(form, SIZE) * 2, struct.pack(form, min(side, limit)) * 2)
    return content


PICTURES = {
    **{form: _image(form) for form in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "JPEG2000")},
    **{f"{mode}.PNG": _image("PNG", mode) for mode in ("L", "P", "1", "LA", "RGBA", "I;16", "CMYK")[:6]},
    "deflated.TIFF": _image("TIFF", compression="tiff_adobe_deflate"),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\n(ran) (w) file closefile\n",
}
SIZES = st.tuples(
    st.sampled_from([0, 1, 24, 9999, 10**5, 2**31 - 1]), st.sampled_from([0, 1, 24, 9999, 10**5, 2**31 - 1])
)
IMAGES = st.one_of(
    damaged(PICTURES),
    st.tuples(damaged(PICTURES), st.sampled_from([0, 9999, 20000, 65535, 10**5, 2**31 - 1])).map(
        lambda pair: (pair[0][0], _claiming(pair[0][1], pair[1]))
    ),
    st.tuples(SIZES, st.sampled_from([1, 8, 16]), st.sampled_from([0, 2, 3, 4, 6])).map(
        lambda t: ("claims.PNG", _png(*t[0], bits=t[1], kind=t[2]))
    ),
    st.binary(max_size=200).map(lambda content: ("bytes", content)),
)

# COCO's annotations

IDS = np.zeros((SIZE, SIZE), np.int64)
IDS[2:12, 3:13], IDS[12:20, 4:20] = 7, 300
PANOPTIC_PNG = _PNG = (lambda stream: (Image.fromarray(id2rgb(IDS)).save(stream, "PNG"), stream.getvalue())[1])(
    io.BytesIO()
)
_SEGMENT = {"iscrowd": 0, "area": 100, "bbox": [3, 2, 10, 10]}
_LISTED = [{"id": 1, "file_name": "a.png", "height": SIZE, "width": SIZE}]
PANOPTIC = {
    "images": _LISTED,
    "annotations": [
        {
            "image_id": 1,
            "file_name": "a.png",
            "segments_info": [{"id": 7, "category_id": 1, **_SEGMENT}, {"id": 300, "category_id": 2, **_SEGMENT}],
        }
    ],
    "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
}
INSTANCES = {
    "images": _LISTED,
    "annotations": [
        {"id": k, "image_id": 1, "category_id": 1, **_SEGMENT, "segmentation": segmentation}
        for k, segmentation in enumerate(
            [
                [[3.0, 2.0, 13.0, 2.0, 13.0, 12.0, 3.0, 12.0]],
                {"size": [SIZE, SIZE], "counts": [100, 50, SIZE * SIZE - 150]},
                {"size": [SIZE, SIZE], "counts": "T3b1f0"},
            ],
            start=1,
        )
    ],
    "categories": [{"id": 1, "name": "cat"}],
}
FORMS = {"coco_panoptic": PANOPTIC, "coco_instances": INSTANCES}


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, entry in inner for place in _places(entry, (*path, key)))]


def _changed(content: Any, path: tuple[Any, ...], value: Any, how: str) -> Any:
    if not path:
        return value
    content = json.loads(json.dumps(content))
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    if how == "remove":
        del holder[path[-1]]
    elif how == "repeat" and isinstance(holder, list):
        holder.append(holder[path[-1]])
    else:
        holder[path[-1]] = value
    return content


@st.composite
def annotations(draw: Callable) -> tuple[str, bytes]:
    """A form, and its json with values that are replaced, removed or repeated, or with damaged bytes."""
    form = draw(st.sampled_from(sorted(FORMS)))
    content: Any = FORMS[form]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(_places(content)))
        content = _changed(content, place, draw(ODD), draw(st.sampled_from(["replace", "replace", "remove", "repeat"])))
    text = json.dumps(content).encode()
    if draw(st.integers(0, 4)) == 0:
        text = edited(text, draw(EDITS))
    if draw(st.integers(0, 50)) == 0:
        text = b"[" * 100_000
    return form, text
