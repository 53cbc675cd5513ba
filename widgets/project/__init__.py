"""The first and the last cell of a notebook: a project opened, its base model and files, a project closed."""
