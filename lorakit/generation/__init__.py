"""Images made by a base model and its LoRA: grids, samples, regularization. Imports prepare and below."""
