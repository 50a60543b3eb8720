"""The browser: a web page over images and labels in a root, also while a run is writing them. No torch."""
