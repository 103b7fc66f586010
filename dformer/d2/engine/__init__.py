"""Training, inference and what a run needs."""
