"""Runs and grids in a cell."""
