"""Self-supervised methods: one file per method, whose name is the `method` of a stage in the recipe."""
