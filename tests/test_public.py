"""The public face: `import dformer`, and a model in one line."""

import subprocess
import sys

import pytest

import dformer
from dformer.d2.checkpoint.checkpointer import ASSETS
from dformer.data.images import read_image
from dformer.utils.errors import UserError


def test_nothing_heavy_is_imported_before_a_model_is_loaded() -> None:
    script = "import sys, dformer; print({'torch', 'numpy', 'detectron2'} & set(sys.modules), dformer.__version__)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["set()", dformer.__version__]


def test_a_model_is_a_function_of_images() -> None:
    model = dformer.load("dformer://shapes")
    image = read_image(ASSETS / "examples" / "shapes-1.jpg")
    result, again = model(image), model(ASSETS / "examples" / "shapes-1.jpg")
    assert result.panoptic.shape == image.shape[:2] and (result.panoptic == again.panoptic).all()
    assert {"grass", "disc", "triangle"} <= set(result.names) and result.scores.min() >= result.min_score > 0
    four = dformer.load("dformer://shapes", opts=["DIFFUSION.SAMPLING_STEPS", "4"])
    assert len(list(four.steps(image))) == 4


def test_what_cannot_be_loaded_is_named() -> None:
    with pytest.raises(UserError, match="dformer://shapes"):
        dformer.load("dformer://shape")
    with pytest.raises(UserError, match="no/such.pth"):
        dformer.load("no/such.pth")
