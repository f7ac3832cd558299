"""How a masked diffusion model writes text."""
