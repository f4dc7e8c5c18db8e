"""The two numbers that a round is measured by, against loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from lplgrad_backend.errors import NotLearnable
from lplgrad_backend.simulation.measures import average_precision, measured

ANSWERS = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=30)


@given(ANSWERS)
def test_average_precision_is_that_of_scikit_learn_also_with_equal_scores(answers: list[tuple[bool, int]]) -> None:
    truth = np.array([True, *(shown for shown, _ in answers)])
    scores = np.array([0, *(score for _, score in answers)], dtype=np.float32)
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores))


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(2, 4))
def test_one_class_is_measured_as_by_a_loop(seed: int, count: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, classes)).astype(np.float32)
    labels = random.integers(0, classes, count)
    plain, even = measured(logits, np.eye(classes, dtype=bool)[labels], False)
    right = [int(row.argmax() == label) for row, label in zip(logits, labels, strict=True)]
    of_class = [np.mean([r for r, label in zip(right, labels, strict=True) if label == one]) for one in {*labels}]
    assert plain == pytest.approx(sum(right) / count)
    assert even == pytest.approx(np.mean(of_class))


@given(st.integers(0, 10_000), st.integers(3, 40))
def test_several_classes_are_measured_one_by_one_and_averaged(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, 4)).astype(np.float32)
    truth = random.random((count, 4)) < 0.5
    truth[0, :2], truth[1, :2], truth[:, 2], truth[:, 3] = True, False, True, False  # the last two tell nothing
    plain, even = measured(logits, truth, True)
    columns = [(truth[:, at], logits[:, at]) for at in (0, 1)]
    assert plain == pytest.approx(np.mean([average_precision_score(shown, said) for shown, said in columns]))
    assert even == pytest.approx(np.mean([balanced_accuracy_score(shown, said > 0) for shown, said in columns]))


def test_images_that_tell_no_class_from_another_are_said() -> None:
    with pytest.raises(NotLearnable, match="2 held-out images"):
        measured(np.zeros((2, 2), dtype=np.float32), np.array([[True, False], [True, False]]), True)
