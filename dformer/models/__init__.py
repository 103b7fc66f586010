"""From backbone features to predictions, in plain PyTorch: one file a system, and the parts that they share."""
