"""Splits that the names of files and folders tell."""

from __future__ import annotations

import pytest

from pipeline.sources._splits import split_from_path


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00005.parquet", "train"),
        ("validation/part.3.tar", "val"),
        ("test/train-0.tar", "test"),
        ("val/training_set_3.parquet", "val"),
        ("Test/labels_train.csv", "test"),
        ("train/test/0.tar", "test"),
        ("my-test-set/0.tar", "test"),
        ("my-test-set/train_0.tar", "train"),
        ("contest/strain-0.tar", None),
        ("0.tar", None),
    ],
)
def test_split_from_path_takes_a_split_folder_before_words(path: str, split: str | None) -> None:
    assert split_from_path(path) == split
