"""Self-supervised methods: one file per method, called in the recipe as its file."""
