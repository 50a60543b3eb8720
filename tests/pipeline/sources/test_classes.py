"""Class names of sources: each once, none empty, none misspelt."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.sources._classes import check_distinct, class_index
from pipeline.sources._tables import LabelColumns, TableConfig, classes_among, distinct_names


@pytest.mark.parametrize("classes", [("a", "a"), ("x", "y", "x", "z")])
def test_check_distinct_refuses_a_class_given_twice(classes: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=f"the class '{classes[0]}' is given twice"):
        check_distinct(classes)


def test_check_distinct_names_both_that_differ_by_case() -> None:
    with pytest.raises(DataError, match="'Cat' and 'cat' differ only by case"):
        check_distinct(("dog", "Cat", "cat"))


@pytest.mark.parametrize(("label", "index"), [("sky", 1), ("1", 1), (1, 1), (0, 0), (1.0, 1), ("007", 7), ("12", 12)])
def test_class_index_takes_names_and_indices(label: object, index: int) -> None:
    assert class_index(label, ("car", "sky", *map(str, range(2, 20)))) == index


@pytest.mark.parametrize(
    "label", ["Sky", "", "-1", -1, 2, "2", 0.5, float("inf"), float("nan"), True, None, [0], "\u0661"]
)
def test_class_index_refuses_what_is_neither(label: object) -> None:
    with pytest.raises(DataError, match=r"label .* is not among the 2 classes: car, sky$"):
        class_index(label, ("car", "sky"))


def test_class_index_refuses_digits_that_name_one_class_and_count_another() -> None:
    classes = ("1", "2", "3")
    with pytest.raises(DataError, match=r"label '1' may be the class of this name, or that at index 1, '2'"):
        class_index("1", classes)
    assert class_index(1, classes) == 1, "a number is an index"
    assert [class_index(str(digit), tuple("0123456789")) for digit in range(10)] == list(range(10))


def test_label_columns_take_digits_for_names_if_the_classes_are_those_that_occur() -> None:
    config, names = TableConfig(kind="csv", path="x"), ("0", "1", "10", "2")
    columns = LabelColumns(config, names, multilabel=False, from_labels=True)
    for number, name in enumerate(names):
        assert columns.truth({"label": name}, "row", (1, 1)).values["classification"]["probs"].argmax() == number


def test_label_columns_take_text_for_names_if_all_stated_classes_are_digits() -> None:
    columns = LabelColumns(TableConfig(kind="csv", path="x"), ("1", "2", "3"), multilabel=False)
    found = [columns.truth({"label": name}, "row", (1, 1)).values["classification"]["probs"].argmax() for name in "123"]
    assert found == [0, 1, 2]
    with pytest.raises(DataError, match="label '0' is not among the 3 classes"):
        columns.truth({"label": "0"}, "row", (1, 1))


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
