"""How the embedded tokenizer `tiny-vae` was made: pictures, recipe, scores."""
