from typing import Any

import numpy as np


def check_measures(entry: dict[str, Any], mask: np.ndarray) -> None:
    """Check area, box and crowd flag of an entry of COCO's json for a mask (H, W)."""
    ys, xs = np.nonzero(mask)
    box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
    assert (entry["area"], entry["bbox"], entry["iscrowd"]) == (mask.sum(), box, 0)
