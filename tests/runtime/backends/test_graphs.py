"""However many sets of outputs clients choose, few graphs are made, and none in another's place."""

import threading
from itertools import combinations

import numpy as np
import pytest

from foveate_runtime.backends import graphs as module
from foveate_runtime.backends.graphs import MOST, Graphs
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle

from ...waiting import LIMIT_SECONDS

OUTPUTS = ("logits", "a", "b", "c", "d")
PAIRS = [{"logits", *pair} for pair in combinations(OUTPUTS[1:], 2)]


def test_past_the_limit_one_graph_answers_every_set() -> None:
    made: list[frozenset[str]] = []

    def make(outputs: frozenset[str]) -> frozenset[str]:
        made.append(outputs)
        return outputs

    graphs = Graphs(make, OUTPUTS)
    for _ in range(3):
        answers = [graphs.get(pair) for pair in PAIRS]
        assert graphs.get({"logits"}) == {"logits"}
    assert all(answer >= pair for answer, pair in zip(answers, PAIRS, strict=True))
    assert made == [{"logits"}, PAIRS[0], PAIRS[1], {*OUTPUTS}]
    assert len(made) == MOST


def test_the_one_with_every_output_has_a_place_of_its_own() -> None:
    graphs = Graphs(lambda outputs: outputs, OUTPUTS)
    assert graphs.get(OUTPUTS) == {*OUTPUTS}
    assert [graphs.get(pair) for pair in PAIRS[:3]] == [PAIRS[0], PAIRS[1], {*OUTPUTS}]


def test_a_graph_that_is_being_made_holds_up_only_those_who_want_it() -> None:
    gate, entered, made = threading.Event(), threading.Semaphore(0), []

    def make(outputs: frozenset[str]) -> frozenset[str]:
        made.append(outputs)
        if "a" in outputs:
            entered.release()
            assert gate.wait(LIMIT_SECONDS)
        return outputs

    graphs, answers = Graphs(make, OUTPUTS), []
    callers = [
        threading.Thread(target=lambda: answers.append(graphs.get(PAIRS[0]))) for _ in range(2)
    ]
    for caller in callers:
        caller.start()
    assert entered.acquire(timeout=LIMIT_SECONDS)
    assert graphs.get({"logits"}) == {"logits"}
    assert graphs.get(PAIRS[5]) == PAIRS[5]
    gate.set()
    for caller in callers:
        caller.join()
    assert answers == [PAIRS[0]] * 2
    assert made.count(frozenset(PAIRS[0])) == 1


def test_a_graph_that_cannot_be_made_is_tried_again() -> None:
    broken = [True]

    def make(outputs: frozenset[str]) -> frozenset[str]:
        if "a" in outputs and broken:
            raise MemoryError("none left")
        return outputs

    graphs = Graphs(make, OUTPUTS)
    with pytest.raises(MemoryError):
        graphs.get(PAIRS[0])
    broken.clear()
    assert graphs.get(PAIRS[0]) == PAIRS[0]


@pytest.mark.parametrize("most", [2, MOST])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_runner_answers_every_set_in_turn_from_few_graphs(
    colours: Bundle, backend: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", most)
    image = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    image[..., 0] = 255
    sets = [
        list(chosen)
        for size in (1, 2, 3)
        for chosen in combinations(("logits", "cam.cam", "features.planes"), size)
    ]
    with create_runner(colours, backend=backend, threads=1) as runner:
        # With maps and without them, each way after the other.
        for outputs in [*sets, *reversed(sets), *sets]:
            inputs = {"image": image}
            if "cam.cam" in outputs:
                inputs["class_ids"] = np.array([[0, 2]])
            results = runner.run(inputs, outputs)
            assert list(results) == outputs
            if "logits" in outputs:
                np.testing.assert_allclose(results["logits"], [[1.25, 0, -0.25]], atol=1e-6)
            if "cam.cam" in outputs:
                np.testing.assert_allclose(results["cam.cam"].mean((2, 3)), [[1, 0]], atol=1e-6)
            if "features.planes" in outputs:
                planes = results["features.planes"].mean((2, 3))
                np.testing.assert_allclose(planes, [[1, 0, 0]], atol=1e-6)
        graphs = runner._compiled if backend == "openvino" else runner._graphs
        assert len(graphs.sets()) <= most
