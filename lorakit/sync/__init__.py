"""A project's home on a slow disk that lies (Drive): opened from there, copied back, never in training's way."""
