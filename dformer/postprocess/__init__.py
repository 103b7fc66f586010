"""Predictions -> results."""

TASKS = ("panoptic", "instance", "semantic")
