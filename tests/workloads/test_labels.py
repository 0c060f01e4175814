"""The network's label of each class of some data."""

from __future__ import annotations

import pytest

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.workloads._labels import is_nameless, labels_of_names


def test_names_decide_and_not_their_order() -> None:
    labels = {0: "traffic light", 1: "N/A", 2: "N/A", 3: "Cat", 4: "stop_sign"}
    assert labels_of_names(["cat", "stop-sign", "Traffic Light"], labels, "x", "y") == [3, 4, 0]
    assert labels_of_names(["n/a"], labels, "x", "y") == [1]


def test_labels_without_names_are_taken_in_order() -> None:
    labels = {0: "LABEL_0", 1: "LABEL_1"}
    assert is_nameless(labels) and not is_nameless({0: "LABEL_1"})
    assert labels_of_names(["b", "a"], labels, "x", "y") == [0, 1]
    with pytest.raises(NabnError, match="^net has 2 labels without names, but there are 3 folders$"):
        labels_of_names(["a", "b", "c"], labels, "folders", "net")


def test_what_has_no_label_and_what_has_it_twice_is_told() -> None:
    with pytest.raises(
        NabnError, match="^1 of the 2 folders are none of the labels of net: owl; its id2label has 1: cat"
    ):
        labels_of_names(["owl", "cat"], {0: "cat"}, "folders", "net")
    with pytest.raises(NabnError, match="several of the folders are one label of net, 'cat' among them"):
        labels_of_names(["cat", "CAT"], {0: "cat"}, "folders", "net")
