"""What outputs are, told from numbers alone: no network runs here."""

import numpy as np
import pytest

from foveate_export.anatomy.ending import (
    NORMALISERS,
    End,
    Ending,
    find_ending,
    for_labels,
    probes,
)
from foveate_export.errors import ExportError, UsageError
from foveate_export.pictures import Pictures
from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.bundle.scores import score

SPEC = InputSpec(
    height=8,
    width=8,
    channels=3,
    resize=8,
    interpolation="bilinear",
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)
LINEAR = End("linear", plain=True)
UNKNOWN = End("div", plain=False)


def logits(classes: int = 5, scale: float = 3, pictures: int = 12) -> np.ndarray:
    values = np.random.default_rng(classes).normal(size=(pictures, classes)) * scale
    return values.astype(np.float32)


def ended(kind: str, before: np.ndarray) -> End:
    return End(kind, plain=False, normaliser=NORMALISERS[kind], before=before)


def outputs_of(kind: str, before: np.ndarray) -> np.ndarray:
    normaliser = NORMALISERS[kind]
    scores = score(before, normaliser.scores)
    return np.log(scores) if normaliser.logarithm else scores


@pytest.mark.parametrize("kind", NORMALISERS)
def test_what_an_operator_says_and_the_numbers_confirm_is_taken_off(kind: str) -> None:
    before = logits()
    outputs = outputs_of(kind, before)
    found = find_ending(outputs, ended(kind, before), None)
    assert found.scores == NORMALISERS[kind].scores
    assert found.normaliser is NORMALISERS[kind]
    assert "taken off the end of the network" in found.said
    assert found.said.startswith(found.scores)
    np.testing.assert_array_equal(found.logits(before), before)
    served = score(found.logits(before), found.scores)
    np.testing.assert_allclose(served, found.expected(outputs), rtol=1e-5)


def test_an_operator_that_the_numbers_do_not_confirm_is_not_believed() -> None:
    """A softmax over another axis, or one that something follows."""
    before = logits()
    halved = outputs_of("softmax", before) / 2
    said = "lie between 0 and 1 on 12 pictures and come from softmax, which does not explain them"
    with pytest.raises(ExportError, match=said):
        find_ending(halved, ended("softmax", before), None)
    # Scores of other logits: probabilities, and so their logarithm is served.
    others = outputs_of("softmax", logits() * 2)
    found = find_ending(others, ended("softmax", before), None)
    assert (found.scores, found.form, found.normaliser) == ("softmax", "logarithm", None)
    np.testing.assert_allclose(score(found.logits(others), "softmax"), others, rtol=1e-5)


@pytest.mark.parametrize("classes", [2, 5, 1000])
def test_probabilities_of_any_origin_are_served_by_their_logarithm(classes: int) -> None:
    shares = np.maximum(logits(classes), 0)
    shares[:, 0] += 0.01
    shares /= shares.sum(1, keepdims=True)
    assert (shares == 0).any()
    found = find_ending(shares, UNKNOWN, None)
    assert (found.scores, found.form) == ("softmax", "logarithm")
    np.testing.assert_allclose(score(found.logits(shares), "softmax"), shares, atol=1e-6)
    half = shares.astype(np.float16).astype(np.float32)
    assert find_ending(half, UNKNOWN, None) == found


def test_logarithms_of_probabilities_are_logits_already() -> None:
    outputs = outputs_of("log_softmax", logits())
    found = find_ending(outputs, UNKNOWN, None)
    assert (found.scores, found.form, found.altered) == ("softmax", "as is", False)
    assert "logarithms of probabilities" in found.said
    np.testing.assert_allclose(score(outputs, "softmax"), np.exp(outputs), rtol=1e-5)


@pytest.mark.parametrize(
    "outputs",
    [
        logits(),
        np.maximum(logits(), 0),
        # Small and never negative, as those of a ReLU at the end of an untrained network.
        np.maximum(logits(), 0) / 20,
        np.full((12, 5), 0.25, np.float32),
        np.zeros((12, 5), np.float32),
        logits(1),
    ],
    ids=["any sign", "rectified", "small and rectified", "constant", "zero", "one"],
)
def test_logits_of_a_plain_operator_are_logits_whatever_their_size(outputs: np.ndarray) -> None:
    found = find_ending(outputs, LINEAR, None)
    assert (found.scores, found.altered) == ("softmax", False)
    assert "taken for logits" in found.said


@pytest.mark.parametrize(
    ("outputs", "where", "choices"),
    [
        (score(logits(), "sigmoid"), "lie between 0 and 1", ["sigmoid", "softmax", "none"]),
        (np.log(score(logits(), "sigmoid")), "are never above 0", ["softmax", "none"]),
        (score(logits(1), "sigmoid"), "lie between 0 and 1", ["sigmoid", "softmax", "none"]),
        (score(logits(), "softmax") * 100, "never below 0 and sum to 100", ["softmax", "none"]),
    ],
)
def test_what_cannot_be_told_is_refused_with_the_choices(
    outputs: np.ndarray, where: str, choices: list[str]
) -> None:
    with pytest.raises(ExportError) as caught:
        find_ending(outputs, UNKNOWN, None)
    said = str(caught.value)
    assert where in said
    assert "come from div" in said
    assert [word for word in ("sigmoid where", "softmax where", "none to") if word in said] == [
        f"{choice} {'to' if choice == 'none' else 'where'}" for choice in choices
    ]


def test_outputs_of_any_size_need_no_known_operator() -> None:
    assert find_ending(logits(), UNKNOWN, None).scores == "softmax"


def test_what_the_user_says_decides_where_the_numbers_do_not() -> None:
    shares = score(logits(), "sigmoid")
    found = find_ending(shares, UNKNOWN, "sigmoid")
    assert (found.scores, found.form) == ("sigmoid", "log-odds")
    np.testing.assert_allclose(score(found.logits(shares), "sigmoid"), shares, atol=1e-6)
    extremes = np.array([[0, 1, 0.5]], np.float32)
    np.testing.assert_allclose(score(found.logits(extremes), "sigmoid"), extremes, atol=1e-6)
    assert not find_ending(shares, UNKNOWN, "softmax").altered
    assert find_ending(logits(), LINEAR, "sigmoid").scores == "sigmoid"
    with pytest.raises(ExportError, match="never above 0"):
        find_ending(np.log(shares), UNKNOWN, "sigmoid")


@pytest.mark.parametrize("kind", NORMALISERS)
def test_none_serves_the_outputs_as_they_are(kind: str) -> None:
    before = logits()
    outputs = outputs_of(kind, before)
    found = find_ending(outputs, ended(kind, before), "none")
    assert (found.scores, found.altered) == ("none", False)
    np.testing.assert_array_equal(found.expected(outputs), outputs)


@pytest.mark.parametrize(
    ("kind", "wanted"), [("softmax", "sigmoid"), ("log_softmax", "sigmoid"), ("sigmoid", "softmax")]
)
def test_scores_that_contradict_the_network_are_refused(kind: str, wanted: str) -> None:
    before = logits()
    with pytest.raises(UsageError, match=f"--scores {wanted} would serve other scores"):
        find_ending(outputs_of(kind, before), ended(kind, before), wanted)


def test_probabilities_are_no_sigmoids() -> None:
    shares = outputs_of("softmax", logits())
    with pytest.raises(UsageError, match="which are probabilities"):
        find_ending(shares, UNKNOWN, "sigmoid")


def test_a_softmax_over_one_output_is_refused() -> None:
    before = logits(1)
    ones = outputs_of("softmax", before)
    with pytest.raises(ExportError, match="a softmax over one output, which is the same for every"):
        find_ending(ones, ended("softmax", before), None)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["dog"], ("not dog", "dog")), (["cat", "dog"], ("cat", "dog"))],
)
@pytest.mark.parametrize("end", ["linear", "sigmoid"])
def test_one_output_has_two_sides(end: str, labels: list[str], expected: tuple[str, str]) -> None:
    before = logits(1)
    outputs = before if end == "linear" else outputs_of("sigmoid", before)
    found = find_ending(outputs, LINEAR if end == "linear" else ended("sigmoid", before), None)
    both, names = for_labels(found, 1, labels, "net")
    assert names == expected
    assert both.scores == "softmax"
    assert both.said.startswith("softmax of the logits -z/2 and z/2 of two classes")
    assert ("a sigmoid, which was taken off" in both.said) == (end == "sigmoid")
    served = score(both.logits(before), "softmax")
    high = score(before, "sigmoid")
    np.testing.assert_allclose(served, np.concatenate([1 - high, high], 1), atol=1e-6)
    np.testing.assert_allclose(both.expected(outputs), served, atol=1e-6)


def test_one_output_keeps_one_label_where_the_user_says_so() -> None:
    before = logits(1)
    outputs = outputs_of("sigmoid", before)
    alone = find_ending(outputs, ended("sigmoid", before), "sigmoid")
    ending, names = for_labels(alone, 1, ["dog"], "net")
    assert (ending.scores, ending.sides, names) == ("sigmoid", False, ("dog",))
    np.testing.assert_allclose(score(ending.logits(before), "sigmoid"), outputs, rtol=1e-6)
    raw = find_ending(outputs, ended("sigmoid", before), "none")
    assert for_labels(raw, 1, ["dog"], "net")[0] == raw


@pytest.mark.parametrize(
    ("outputs", "labels", "scores", "said"),
    [
        (5, 4, "softmax", "4 labels for the 5 classes of net"),
        (1, 3, "softmax", "3 labels for the one output of net: it takes one label, or two"),
        (1, 2, "none", "2 labels for the one output of net"),
        (2, 1, "softmax", "1 labels for the 2 classes of net"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    outputs: int, labels: int, scores: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        for_labels(Ending(scores, scores), outputs, ["label"] * labels, "net")


def test_noise_joins_pictures_too_few_to_decide_by() -> None:
    one = Pictures(np.zeros((1, 8, 8, 3), np.uint8), "one picture")
    assert len(probes(one, SPEC)) == 5
    many = Pictures(np.zeros((32, 8, 8, 3), np.uint8), "many")
    assert len(probes(many, SPEC)) == 12


def test_negative_logarithms_of_probabilities_are_no_logits() -> None:
    """Their lowest is the best class, so that a softmax of them would turn every answer round."""
    with pytest.raises(ExportError, match=r"whose lowest is the best class: export .* without"):
        find_ending(-outputs_of("log_softmax", logits()), End("neg", plain=False), None)


@pytest.mark.parametrize(
    ("operator", "outputs", "looks"),
    [
        ("Mul 'percent'", 100 * outputs_of("sigmoid", logits()), "between 0 and 100"),
        ("__rmul__", 100 * outputs_of("sigmoid", logits(1)), "between 0 and 100"),
        ("Tanh", np.tanh(logits()), "between -1 and 1"),
        ("tanh", np.tanh(logits(1)), "between -1 and 1"),
    ],
)
def test_outputs_within_bounds_are_the_users_to_name(
    operator: str, outputs: np.ndarray, looks: str
) -> None:
    end = End(operator, plain=False)
    with pytest.raises(ExportError, match=f"{looks} on 12 pictures .* with --scores"):
        find_ending(outputs, end, None)
    assert find_ending(outputs, end, "softmax").form == "as is"
    assert find_ending(outputs, end, "none").scores == "none"


def test_scaled_logits_are_logits() -> None:
    assert find_ending(logits() * 10, End("mul", plain=False), None).form == "as is"
    # As SqueezeNet's, which a rectifier makes.
    assert find_ending(np.maximum(logits(), 0), End("relu", plain=False), None).form == "as is"
