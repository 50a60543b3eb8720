"""Kinds of teachers: one file each, whose name is the `kind` of a teacher in the recipe.

A file `teachers/<kind>.py`, which must not import torch at its top level, holds

    class Config(TeacherConfig): ...  # the keys of the recipe; `check` is called before a run's first step
    def make(config, inputs, out) -> Mapping[str, Any]: ...  # train or fetch the teacher, and return counts
    def load(folder) -> Predictor: ...  # the teacher from its artifact's folder, on the CPU in float32

`config` of `make` has `name` (of the teacher and its head), `teacher` (a `Config` as JSON) and `seed`. `make` writes
`model.json`, by which choices of precision are remembered, what `load` needs, and `Teacher(...).write(out)`.
"""
