"""Probes: classifiers on frozen features, one file each, named in the recipe by their file."""
