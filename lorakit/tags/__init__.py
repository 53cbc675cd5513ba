"""Editing captions with a history, automatic captions, suspicious tags. Imports taggers and below."""
