"""The diffusion process on any tensor: noise schedule, parameterisations, sampler, and masks as a signal."""
