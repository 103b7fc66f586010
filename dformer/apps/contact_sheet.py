"""Contact sheets of a model's inputs."""

import numpy as np
from detectron2.config import CfgNode
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from dformer.d2.data.datasets import get_records
from dformer.d2.data.mappers import TestMapper, TrainMapper
from dformer.d2.data.pictures import draw_record, draw_targets
from dformer.utils import rng
from dformer.visualize import DEFAULT_STYLE, Style, UInt8

MARGIN, TITLE = 4, 22  # pixels around a picture, and above a column


def contact_sheet(
    cfg: CfgNode, rows: int = 6, draws: int = 4, seed: int = 0, cell: int = 360, style: Style = DEFAULT_STYLE
) -> Image.Image:
    """Draw images as annotated, as tested, and in `draws` random augmentations, with targets on top; a row each.

    Args:
        cfg: names data set (the first of DATASETS.TRAIN), task, augmentations and sizes.
        rows: number of images, evenly chosen.
        draws: augmentations of each.
        seed: of the augmentations.
        cell: side of the square that each picture is fitted into, in pixels.
        style: of the pictures.

    Raises:
        UserError: data set, annotations or augmentations cannot be used.
    """
    name, task = cfg.DATASETS.TRAIN[0], cfg.INPUT.TASK
    records = get_records(name)
    drawn = cfg.clone()
    drawn.merge_from_list(["INPUT.TARGET", "masks"])  # what is drawn, whatever the model takes
    train, test = TrainMapper.from_config(drawn), TestMapper.from_config(cfg)
    chosen = np.linspace(0, len(records) - 1, min(rows, len(records))).round().astype(int)
    sheet = Image.new("RGB", ((2 + draws) * cell, TITLE + len(chosen) * cell), "white")
    titles = ["as annotated", "as tested", *(f"as trained on, {k}" for k in range(1, draws + 1))]
    for column, title in enumerate(titles):
        position = (column * cell + MARGIN, MARGIN)
        ImageDraw.Draw(sheet).text(position, title, fill="black", font=ImageFont.load_default(14))

    with rng.seeded("contact sheet", seed):
        for row, index in enumerate(chosen):
            record = records[index]
            pictures = [draw_record(record, name, task, style=style), _rgb(test(record)["image"], cfg.INPUT.FORMAT)]
            for item in (train(record) for _ in range(draws)):
                classes, masks = item["instances"].gt_classes.tolist(), item["instances"].gt_masks.numpy()
                image = _rgb(item["image"], cfg.INPUT.FORMAT)
                pictures.append(draw_targets(image, classes, masks, name, task, style))
            for column, picture in enumerate(pictures):
                fitted = ImageOps.contain(Image.fromarray(picture), (cell - 2 * MARGIN, cell - 2 * MARGIN))
                sheet.paste(fitted, (column * cell + MARGIN, TITLE + row * cell + MARGIN))
    return sheet


def _rgb(image: Tensor, image_format: str) -> UInt8:
    """A mapper's image (3, H, W) as (H, W, 3) RGB."""
    picture = image.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(picture[:, :, ::-1] if image_format == "BGR" else picture)
