"""Class names of sources: each once, none empty, none misspelt."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.sources._classes import check_distinct
from pipeline.sources._tables import LabelColumns, TableConfig, classes_among, distinct_names


@pytest.mark.parametrize("classes", [("a", "a"), ("x", "y", "x", "z")])
def test_check_distinct_refuses_a_class_given_twice(classes: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=f"the class '{classes[0]}' is given twice"):
        check_distinct(classes)


def test_check_distinct_names_both_that_differ_by_case() -> None:
    with pytest.raises(DataError, match="'Cat' and 'cat' differ only by case"):
        check_distinct(("dog", "Cat", "cat"))


def test_distinct_names_has_none_for_empty_parts() -> None:
    config = TableConfig(kind="csv", path="x", separator="|")
    assert distinct_names(["|a|", "a||b", "|", " "], config) == {"a", "b"}
    columns = LabelColumns(config, ("a", "b"), multilabel=True)
    assert columns.truth({"label": "|a|"}, "row", (1, 1)).values["multilabel"]["probs"].tolist() == [1, 0]
    assert columns.truth({"label": "|"}, "row", (1, 1)).notes == ["no label"], "as a blank cell"


def test_classes_among_refuses_no_class_that_does_not_occur() -> None:
    config = TableConfig(kind="csv", path="x", separator="|", no_class=("No Findng",))
    with pytest.raises(ConfigError, match=r"no_class: name in column 'label' 'No Findng' .*Did you mean 'No Finding'"):
        classes_among({"No Finding", "Hernia"}, config)
