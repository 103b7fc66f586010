"""Checkpoints of a config's model, and the config of a checkpoint."""
