"""Reads base models in every form that people have: folders, single files, parts. Imported by the families."""
