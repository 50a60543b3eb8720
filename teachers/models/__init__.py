"""Models of other libraries, wrapped as networks of one head that predict as our own do."""
