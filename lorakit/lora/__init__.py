"""LoRA weights: on a model, in files of every layout, proved at export. Imports layers and below."""
