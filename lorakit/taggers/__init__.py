"""Taggers, one file each: pictures in, `{tag: score}` out."""
