"""A run in a cell: its form, what will happen, the live view."""
