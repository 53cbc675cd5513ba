"""Layers of a frozen model and the LoRA passes on them. Imports machine and below."""
