"""The tag editor and tagging in a cell."""
