"""Taking results out of the house, in forms that other tools read."""
