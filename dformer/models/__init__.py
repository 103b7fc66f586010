"""From backbone features to predictions, in plain PyTorch: one file per system, and the parts that they share."""
