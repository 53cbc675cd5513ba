"""Images brought into a project and made ready for training. Imports training and below."""
