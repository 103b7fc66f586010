"""Augmentations: `cfg.INPUT` -> a list of Detectron2's."""

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image

from dformer.utils.errors import UserError

Augmentations = list[T.Augmentation | T.Transform]


def train_augmentations(cfg: CfgNode, ignore_label: int = 255) -> Augmentations:
    """Build the augmentations of training images from `INPUT.AUGMENTATION`, `COLOR_AUG_SSD` and `RANDOM_FLIP`.

    Void (`ignore_label`) does not count for `INPUT.CROP.SINGLE_CATEGORY_MAX_AREA`.

    Raises:
        UserError: a value that does not exist, or keys that contradict each other.
    """
    kinds = {
        "lsj": _large_scale_jitter,
        "native": _native,
        "crop": _resize_and_crop,
        "resize": _resize,
        "detr": _detr,
        "square": _square,
    }
    kind, flip = cfg.INPUT.AUGMENTATION, cfg.INPUT.RANDOM_FLIP
    if kind not in kinds:
        raise UserError(f'INPUT.AUGMENTATION is "{kind}"; choose one of {", ".join(kinds)}')
    if flip not in ("horizontal", "vertical", "rotate", "none"):
        raise UserError(f'INPUT.RANDOM_FLIP is "{flip}"; choose one of horizontal, vertical, rotate, none')
    if cfg.INPUT.CROP.ENABLED and kind != "crop":
        raise UserError(f'INPUT.CROP.ENABLED needs INPUT.AUGMENTATION "crop"; it is "{kind}", which crops its own way')
    augmentations = kinds[kind](cfg, ignore_label)
    if cfg.INPUT.COLOR_AUG_SSD:
        augmentations.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
    if flip == "rotate":
        augmentations.append(RandomQuarterTurn())
    elif flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    return augmentations


def test_augmentations(cfg: CfgNode) -> Augmentations:
    """Build the resizing of images at inference: short side `INPUT.MIN_SIZE_TEST` (0: none), at most `MAX_SIZE_TEST`.

    With INPUT.AUGMENTATION "square" it is that square, with "native" all are scaled by SCALE_TEST. With TEST.AUG, which
    has its own sizes, there is none.
    """
    if cfg.TEST.AUG.ENABLED:
        return []
    if cfg.INPUT.AUGMENTATION == "square":
        return _square(cfg, 0)
    if cfg.INPUT.AUGMENTATION == "native":
        return [KeepOnePixel(RandomScale(cfg.INPUT.SCALE_TEST, cfg.INPUT.SCALE_TEST))]
    short = cfg.INPUT.MIN_SIZE_TEST
    return [KeepOnePixel(T.ResizeShortestEdge([short, short], cfg.INPUT.MAX_SIZE_TEST, "choice"))]


class KeepOnePixel(T.Augmentation):
    """Resize, but leave at least one pixel of the height and width of very flat images."""

    def __init__(self, resize: T.Augmentation) -> None:
        super().__init__()
        self.resize = resize

    def get_transform(self, image: np.ndarray) -> T.Transform:
        t = self.resize.get_transform(image)
        if isinstance(t, T.ResizeTransform):
            return T.ResizeTransform(t.h, t.w, max(t.new_h, 1), max(t.new_w, 1), t.interp)
        return t


class _Crop(T.RandomCrop):
    """Random crop of at least one pixel."""

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = super().get_crop_size(image_size)
        return max(height, 1), max(width, 1)


class RandomScale(T.Augmentation):
    """Resize by a random factor."""

    def __init__(self, min_scale: float, max_scale: float) -> None:
        super().__init__()
        self.scales = min_scale, max_scale

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        scale = np.random.uniform(*self.scales)
        return T.ResizeTransform(height, width, round(height * scale), round(width * scale), Image.Resampling.BILINEAR)


class QuarterTurn(T.Transform):
    """Rotate by `turns` times 90 degrees, exactly, and then mirror it if `is_mirrored`."""

    def __init__(self, turns: int, is_mirrored: bool, height: int, width: int) -> None:
        super().__init__()
        self.turns, self.is_mirrored, self.height, self.width = turns, is_mirrored, height, width

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        turned = np.rot90(img, self.turns)
        return np.ascontiguousarray(turned[:, ::-1] if self.is_mirrored else turned)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        (x, y), height, width = coords.T.copy(), self.height, self.width
        for _ in range(self.turns):
            x, y, height, width = y, width - x, width, height
        return np.stack([width - x if self.is_mirrored else x, y], axis=1)


class RandomQuarterTurn(T.Augmentation):
    """Rotate by a random number of quarter turns, and mirror half of the images: eight orientations, equally likely."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return QuarterTurn(np.random.randint(4), np.random.rand() < 0.5, *image.shape[:2])


class ResizeThenCrop(T.Transform):
    """Resize, then crop, with the same result, but without computing most of what the crop drops."""

    def __init__(self, resize: T.ResizeTransform, crop: T.CropTransform) -> None:
        super().__init__()
        self.resize = resize
        self.crop = crop

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self._apply(img, self.resize.interp)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self._apply(segmentation, Image.Resampling.NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return self.crop.apply_coords(self.resize.apply_coords(coords))

    def _apply(self, img: np.ndarray, interp: int) -> np.ndarray:
        resize, crop = self.resize, self.crop
        if img.dtype != np.uint8 or resize.new_h < resize.h:
            return crop.apply_image(resize.apply_image(img, interp))
        # To enlarge, Pillow stretches all rows first, then all columns: in between, the columns that the crop drops can
        # go. (Pillow's argument `box` would do all at once, but is of single precision: grey values would differ by 2.)
        picture = Image.fromarray(img)
        picture = picture.resize((resize.new_w, resize.h), interp).crop((crop.x0, 0, crop.x0 + crop.w, resize.h))
        picture = picture.resize((crop.w, resize.new_h), interp)
        return np.asarray(picture.crop((0, crop.y0, crop.w, crop.y0 + crop.h)))


class LargeScaleJitter(T.Augmentation):
    """Apply large-scale jitter (Ghiasi et al., Simple Copy-Paste, 2021): resize, and crop to a square; the mapper pads.

    The place of the crop is drawn for each axis, as in the paper's code. Detectron2's `FixedSizeCrop`, as in the
    published DFormer, draws one number for both axes, so its crops are along the diagonal.
    """

    def __init__(self, resize: T.Augmentation, size: int) -> None:
        super().__init__()
        self.resize = KeepOnePixel(resize)
        self.crop = _Crop("absolute", (size, size))

    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = self.resize.get_transform(image)
        resized = np.broadcast_to(np.uint8(0), (resize.new_h, resize.new_w))  # only its size counts
        return ResizeThenCrop(resize, self.crop.get_transform(resized))


def _large_scale_jitter(cfg: CfgNode, _: int) -> Augmentations:
    size = cfg.INPUT.IMAGE_SIZE
    return [LargeScaleJitter(T.ResizeScale(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, size, size), size)]


def _native(cfg: CfgNode, _: int) -> Augmentations:
    return [LargeScaleJitter(RandomScale(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE), cfg.INPUT.IMAGE_SIZE)]


def _resize_and_crop(cfg: CfgNode, ignore_label: int) -> Augmentations:
    crop = cfg.INPUT.CROP
    limit = crop.SINGLE_CATEGORY_MAX_AREA
    if limit >= 1:
        return [*_resize(cfg, ignore_label), _Crop(crop.TYPE, crop.SIZE)]
    if cfg.INPUT.TASK == "instance":
        raise UserError(
            "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA needs a class for each pixel, which instance annotations do not give; "
            "set it to 1.0"
        )
    limited = T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, limit, ignore_label)
    limited.crop_aug = _Crop(crop.TYPE, crop.SIZE)
    return [*_resize(cfg, ignore_label), limited]


def _resize(cfg: CfgNode, _: int) -> Augmentations:
    sizes, style = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    return [KeepOnePixel(T.ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TRAIN, style))]


def _detr(cfg: CfgNode, ignore_label: int) -> Augmentations:
    """In half of the images, first crop a part of 384 to 600 pixels a side (DETR, Carion et al. 2020, Sec. 4)."""
    enlarge = KeepOnePixel(T.ResizeShortestEdge([400, 500, 600], sample_style="choice"))
    part = T.AugmentationList([enlarge, _Crop("absolute_range", (384, 600))])
    return [T.RandomApply(part, prob=0.5), *_resize(cfg, ignore_label)]


def _square(cfg: CfgNode, _: int) -> Augmentations:
    return [T.Resize((cfg.INPUT.IMAGE_SIZE, cfg.INPUT.IMAGE_SIZE), Image.Resampling.BICUBIC)]
