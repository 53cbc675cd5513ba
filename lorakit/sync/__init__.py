"""The remote copy of a project on a slow disk (e.g. Google Drive): download, upload in the background, retry.

A "remote" is the folder of a remote copy. Such a disk may hang, fail, or report writes before they are done, so every
file is read back before it counts as uploaded, and nothing here may delay training. Imports run/ and what is below.
"""
