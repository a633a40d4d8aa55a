"""A store of latents in, a trained and measured latent mapping model out."""
