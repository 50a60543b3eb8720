"""The step that labels the pool with all teachers, whole or in parts."""
