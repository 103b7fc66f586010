"""Weights: checkpoint files, which parameter is which, ImageNet backbones, published models."""
