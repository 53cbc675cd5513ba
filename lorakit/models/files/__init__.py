"""Reads what people have of a base model: folders, single files, parts. Imported by the families beside it."""
