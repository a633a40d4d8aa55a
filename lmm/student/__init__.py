"""The student: a small network that decodes mask latents in the frozen decoder's place."""
