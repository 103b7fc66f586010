"""What is diffused: ground truth <-> signal."""
