"""Published checkpoints by name: where they are, and the configs that they go with.

Addresses and the beginnings of the MD5s are those of Mask2Former's model zoo
(https://github.com/facebookresearch/Mask2Former/blob/main/MODEL_ZOO.md), whose file names have the latter.
"""

import logging
import os
from pathlib import Path
from typing import NamedTuple

from dformer.utils.download import download
from dformer.utils.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

CC_BY_NC = "CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/): not for commercial use"


class Published(NamedTuple):
    """Hold where a published checkpoint is."""

    url: str
    md5: str  # its beginning
    config: str  # relative to configs/
    licence: str


# Data set, task and backbone; published name; MD5; our config.
_MASK2FORMER = """
coco/panoptic/r50               R50_bs16_50ep                          94dc52  mask2former_r50_50ep
coco/instance/r50               R50_bs16_50ep                          3c8ec9  mask2former_r50_50ep
coco/panoptic/r101              R101_bs16_50ep                         b807bd  mask2former_r101_50ep
coco/instance/r101              R101_bs16_50ep                         eba159  mask2former_r101_50ep
coco/panoptic/swin_tiny         swin_tiny_bs16_50ep                    9fd0ae  swin/mask2former_swin_tiny_50ep
coco/instance/swin_tiny         swin_tiny_bs16_50ep                    86143f  swin/mask2former_swin_tiny_50ep
coco/panoptic/swin_small        swin_small_bs16_50ep                   a407fd  swin/mask2former_swin_small_50ep
coco/instance/swin_small        swin_small_bs16_50ep                   1e7f22  swin/mask2former_swin_small_50ep
coco/panoptic/swin_base         swin_base_384_bs16_50ep                9d7f02  swin/mask2former_swin_base_50ep
coco/instance/swin_base         swin_base_384_bs16_50ep                f6e0f6  swin/mask2former_swin_base_50ep
coco/panoptic/swin_base_22k     swin_base_IN21k_384_bs16_50ep          54b88a  swin/mask2former_swin_base_22k_50ep
coco/instance/swin_base_22k     swin_base_IN21k_384_bs16_50ep          83d103  swin/mask2former_swin_base_22k_50ep
coco/panoptic/swin_large_22k    swin_large_IN21k_384_bs16_100ep        f07440  swin/mask2former_swin_large_22k_100ep
coco/instance/swin_large_22k    swin_large_IN21k_384_bs16_100ep        e5f453  swin/mask2former_swin_large_22k_100ep
ade20k/panoptic/r50             R50_bs16_160k                          5c90d4  mask2former_r50_160k
ade20k/panoptic/swin_large_22k  swin_large_IN21k_384_bs16_160k         e0c58e  swin/mask2former_swin_large_22k_160k
ade20k/instance/r50             R50_bs16_160k                          67e945  mask2former_r50_160k
ade20k/instance/swin_large_22k  swin_large_IN21k_384_bs16_160k         92dae9  swin/mask2former_swin_large_22k_160k
ade20k/semantic/r50             R50_bs16_160k                          500878  mask2former_r50_160k
ade20k/semantic/r101            R101_bs16_90k                          0d68be  mask2former_r101_160k
ade20k/semantic/swin_tiny       swin_tiny_bs16_160k                    5274a6  swin/mask2former_swin_tiny_160k
ade20k/semantic/swin_small      swin_small_bs16_160k                   011c6d  swin/mask2former_swin_small_160k
ade20k/semantic/swin_base       swin_base_384_bs16_160k_res640         503e96  swin/mask2former_swin_base_160k
ade20k/semantic/swin_base_22k   swin_base_IN21k_384_bs16_160k_res640   7e47bf  swin/mask2former_swin_base_22k_160k
ade20k/semantic/swin_large_22k  swin_large_IN21k_384_bs16_160k_res640  6b4a3a  swin/mask2former_swin_large_22k_160k
"""


def _mask2former(row: str) -> tuple[str, Published]:
    name, theirs, md5, ours = row.split()
    folder = name.rpartition("/")[0]
    url = f"https://dl.fbaipublicfiles.com/maskformer/mask2former/{folder}/maskformer2_{theirs}/model_final_{md5}.pkl"
    return f"mask2former/{name}", Published(url, md5, f"{folder}/{ours}.yaml", CC_BY_NC)


MODELS = dict(map(_mask2former, _MASK2FORMER.strip().splitlines()))

# Pages of DFormer's authors, from which only a browser can download.
PAGES = {
    "dformer/coco/panoptic/r50": "https://pan.baidu.com/s/1-nS9BVvemRz20oB8iABhkA?pwd=xg6r",
    "dformer/coco/panoptic/swin_tiny": "https://pan.baidu.com/s/1em8yVsaFbQjvGSJ5qVT88w?pwd=8gfq",
    "dformer/coco/instance/r50": "https://pan.baidu.com/s/1arjRIxfqpnjqaYOG0W6r9g?pwd=9pah",
    "dformer/coco/instance/swin_tiny": "https://pan.baidu.com/s/1YcOdvacuWbOIewmByybN2Q?pwd=ewgk",
    "dformer/ade20k/semantic/r50": "https://pan.baidu.com/s/14I9sU9jDpn8tq557ucfEaw?pwd=j5iq",
    "dformer/ade20k/semantic/swin_tiny": "https://pan.baidu.com/s/1fBUnQ0gMfeJmxhRjRegPBg?pwd=4cfr",
}


def is_name(weights: str) -> bool:
    """Return whether `weights` is meant as the name of a published checkpoint, "mask2former/...", and is no file."""
    return weights.startswith(("mask2former/", "dformer/")) and weights.count("/") == 3 and not Path(weights).exists()


def published(name: str) -> Published:
    """Return where a published checkpoint is.

    Raises:
        UserError: there is none of that name, or it can only be downloaded by hand.
    """
    if name in PAGES:
        raise UserError(f"{name} can only be downloaded with a browser: {PAGES[name]}; then give the file instead")
    if name not in MODELS:
        hint = did_you_mean(name, [*MODELS, *PAGES])
        raise UserError(f'no published checkpoint has the name "{name}"{hint} (all: {", ".join(MODELS)})')
    return MODELS[name]


def fetch_published(name: str) -> Path:
    """Return the file of a published checkpoint, which is downloaded into the user's cache if it is not there.

    The cache is `dformer/weights` in XDG_CACHE_HOME, or in ~/.cache.

    Raises:
        UserError: it cannot be downloaded, see `download`.
    """
    model = published(name)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "dformer" / "weights"
    file = cache / name / model.url.rsplit("/", 1)[-1]
    if not file.is_file():
        logger.warning(f"{name}: downloading {model.url} to {file}; its licence is {model.licence}")
        download(model.url, file, model.md5)
    return file
