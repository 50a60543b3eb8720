"""The student: its training data, loss weights and training, and the exports of labels and of the trained network."""
