"""Files on this machine or on object storage: paths, roots, locks, the cache."""

DEFAULT_ROOT = "must-root"
"""Folder of all results, by default. Here, as the command's help loads no code of storages."""
