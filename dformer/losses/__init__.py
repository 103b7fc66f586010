"""Matching of predictions to ground truth, and losses at sampled points, independent of diffusion."""
