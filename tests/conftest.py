"""Keeps every test away from the network, the user's model cache and any display."""

import os
import tempfile

_cache = tempfile.TemporaryDirectory()
os.environ["HF_HOME"] = _cache.name
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nothing listens there: a hidden call to the hub fails at once
os.environ["MPLBACKEND"] = "agg"
