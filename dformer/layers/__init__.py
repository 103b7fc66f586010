"""Building blocks that know nothing of masks or diffusion."""
