"""Stages: a method, the images of some sets, and the one training loop."""
