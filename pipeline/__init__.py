"""Raw images and masks in, a store of latents out."""
