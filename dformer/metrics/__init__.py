"""Metrics of segmentation: PQ, mask AP, mIoU, boundaries, calibration. Percentages, nan where nothing is annotated."""
