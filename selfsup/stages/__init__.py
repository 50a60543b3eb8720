"""The step that trains a stage: its images and views, its labelled images, and its training."""
