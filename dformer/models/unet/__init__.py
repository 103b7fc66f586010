"""U-Nets, and the autoencoders of latent diffusion."""
