"""Panoptic quality."""

import numpy as np
import pytest
from panopticapi.evaluation import PQStat
from panopticapi.utils import id2rgb
from PIL import Image
from safetensors.torch import load_file

from dformer.metrics.panoptic import ONE_CLASS, count_segments, panoptic_quality, to_one_class


@pytest.mark.golden
def test_golden_class_agnostic_quality(golden_dir, tmp_path):
    """With crowds and void, as the published evaluation of LDMSeg has it."""
    golden = load_file(golden_dir / "ldmseg_agnostic_pq.safetensors")
    counts = PQStat()
    for image in sorted({key.split(".")[0] for key in golden if "." in key}):
        annotations = []
        for kind in ("truth", "predicted"):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(id2rgb(golden[f"{image}.{kind}"].numpy().astype(np.int64))).save(
                tmp_path / kind / f"{image}.png"
            )
            rows = golden[f"{image}.{kind}_segments"].tolist()
            segments = [
                dict(zip(("id", "category_id", "iscrowd"), r if kind == "truth" else (r, 1, 0), strict=True))
                for r in rows
            ]
            for segment in segments:
                segment["area"] = int((golden[f"{image}.{kind}"] == segment["id"]).sum())
            annotations.append({"image_id": image, "file_name": f"{image}.png", "segments_info": segments})
        truth, prediction = map(to_one_class, annotations)
        counts += count_segments(truth, prediction, tmp_path / "truth", tmp_path / "predicted", ONE_CLASS)
    results = panoptic_quality(counts, ONE_CLASS)
    for name in ("PQ", "SQ", "RQ"):
        expected = golden[name].item()
        assert results[name] == pytest.approx(expected if expected > 1 else 100 * expected, abs=1e-6)
