"""Matching of predictions to ground truth, and losses at sampled points; nothing here knows of diffusion."""
