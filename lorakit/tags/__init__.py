"""Captions that remember who wrote which tag. Imports taggers and below."""
