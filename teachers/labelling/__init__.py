"""The pool, and the labelling of it by all teachers."""
