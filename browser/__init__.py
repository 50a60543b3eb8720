"""The page over the stores: labels and images, looked at where they lie, also while a run is writing them. No torch."""
