"""Building blocks of the methods: losses, heads, momentum encoders, k-means, and the base classes to extend."""
