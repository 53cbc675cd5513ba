"""The maths of training and sampling, with no model in it. Imports lora and below."""
