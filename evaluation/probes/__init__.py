"""Measurements of frozen features, a file each: the name in the recipe is the file's name."""
