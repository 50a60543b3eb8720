"""What methods are made of: losses, heads, momentum copies, and the watch on collapse."""
