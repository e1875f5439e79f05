"""How far answers can be believed, and what speaks for one class and against another."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate_client import (
    Cam,
    Client,
    FailedPreconditionError,
    InvalidArgumentError,
    TrustRequest,
)
from foveate_client.commands import classify
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.commands import calibrate
from foveate_runtime.trust.answer import Assessor

from ..colours import BIAS, LABELS, SIZE, write_colour_bundle
from ..conftest import served

RED, GREEN, BLUE = range(3)
COLOUR = (60, 200, 90)


def calibrated_repository(root: Path) -> Path:
    """Write a bundle of colours, and a calibrated version of it with a policy."""
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, 150)
    levels = random.integers(0, 120, (150, 3))
    levels[np.arange(150), targets] += 60
    for number, (level, target) in enumerate(zip(levels, targets, strict=True)):
        folder = root / "data" / LABELS[target]
        folder.mkdir(parents=True, exist_ok=True)
        flat(*level).save(folder / f"{number}.png")
    bundle = write_colour_bundle(root / "repository")
    arguments = ["--data", str(root / "data"), "--coverage", "0.9,0.95"]
    assert calibrate.main([str(bundle), *arguments, "--abstain-above", "99"]) == 0
    write_colour_bundle(root / "repository", name="plain")
    return root / "repository"


def flat(*colour: int) -> Image.Image:
    return Image.fromarray(np.tile(np.array(colour, np.uint8), (SIZE, SIZE, 1)))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated_repository(tmp_path_factory.mktemp("trust"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "green.png"
    flat(*COLOUR).save(path)
    return path


@pytest.fixture(scope="module")
def address(repository: Path) -> Iterator[str]:
    with served(repository) as address:
        yield address


@pytest.fixture(params=["process", "server"])
def client(request: pytest.FixtureRequest, repository: Path) -> Iterator[Client]:
    """A client of the models in this process, and one of a server."""
    if request.param == "process":
        with Client.local(repository) as client:
            yield client
    else:
        with Client(request.getfixturevalue("address")) as client:
            yield client


def test_an_answer_says_what_the_calibration_says_of_its_logits(
    client: Client, repository: Path, picture: Path
) -> None:
    manifest = Bundle.open(repository / "colours" / "2").manifest
    trust = manifest.variants[0].trust
    assert trust is not None
    logits = np.array(COLOUR, np.float32) / 255 + np.array(BIAS, np.float32)
    assessor = Assessor(trust, manifest.policy, "softmax")
    for coverage in (0.9, 0.95):
        for method in ("lac", "raps"):
            (expected,) = assessor.assess(logits[None], coverage, method)
            wanted = TrustRequest(coverage=coverage, set_method=method)
            answer = client.classify(picture, model="colours", top_k=3, trust=wanted)
            assert answer.trust is not None
            assert answer.trust.coverage == coverage
            assert answer.trust.set_method == method
            assert answer.trust.prediction_set == expected.prediction_set
            assert answer.trust.ood_percentile == pytest.approx(expected.ood_percentile, abs=0.1)
            assert expected.confidence is not None
            for prediction in answer.predictions:
                confidence = expected.confidence[prediction.class_id]
                assert prediction.confidence == pytest.approx(confidence, rel=1e-4)


def test_a_model_says_which_coverages_may_be_asked_for(client: Client) -> None:
    assert client.model("colours").coverages == (0.9, 0.95)
    assert client.model("plain").coverages == ()


def test_nothing_is_said_unasked(client: Client, picture: Path) -> None:
    answer = client.classify(picture, model="colours")
    assert answer.trust is None
    assert [x.confidence for x in answer.predictions] == [None] * 3


def test_the_model_abstains_by_its_policy(client: Client, tmp_path: Path) -> None:
    # All three logits are equal, which no picture of the calibration came near.
    path = tmp_path / "even.png"
    flat(0, 64, 128).save(path)
    answer = client.classify(path, model="colours", trust=True)
    assert answer.trust is not None
    assert answer.trust.ood_percentile > 99
    assert answer.trust.abstained
    assert answer.predictions


def test_a_model_without_calibration_names_the_command(client: Client, picture: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="foveate calibrate BUNDLE --data") as caught:
        client.classify(picture, model="plain", trust=True)
    assert caught.value.reason == "NOT_CALIBRATED"


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0, 1.5, float("nan"), float("inf")])
def test_what_is_no_coverage_is_refused(client: Client, picture: Path, coverage: float) -> None:
    for model in ("colours", "plain"):
        with pytest.raises(InvalidArgumentError, match="above 0 and below 1") as caught:
            client.classify(picture, model=model, trust=TrustRequest(coverage=coverage))
        assert caught.value.reason == "COVERAGE_OUT_OF_RANGE"
        assert caught.value.field_violations[0].field == "trust.coverage"


def test_the_set_of_independent_labels_is_that_of_all_labels(tmp_path: Path) -> None:
    root = calibrated_repository(tmp_path)
    random = np.random.default_rng(1)
    rows = ["picture,labels"]
    for path in sorted((root.parent / "data").glob("*/*.png")):
        also = f";{random.choice(LABELS)}" if random.random() < 0.3 else ""
        rows.append(f"data/{path.parent.name}/{path.name},{path.parent.name}{also}")
    table = root.parent / "labels.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    bundle = write_colour_bundle(root, name="several", scores="sigmoid")
    assert calibrate.main([str(bundle), "--data", str(table)]) == 0
    trust = Bundle.open(root / "several" / "2").manifest.variants[0].trust
    assert trust is not None
    path = tmp_path / "green.png"
    flat(*COLOUR).save(path)
    with Client.local(root) as client:
        answer = client.classify(path, model="several", trust=True)
        logits = {x.class_id: x.logit for x in answer.predictions}
        expected = {c for c, z in logits.items() if 1 / (1 + np.exp(z)) <= trust.sets[0].lac}
        assert answer.trust is not None
        assert set(answer.trust.prediction_set) == expected
        for each in answer.predictions:
            scaled = each.logit / trust.temperatures[each.class_id]
            assert each.confidence == pytest.approx(1 / (1 + np.exp(-scaled)), rel=1e-4)
        with pytest.raises(InvalidArgumentError, match="no sets of raps; there is lac"):
            client.classify(path, model="several", trust=TrustRequest(set_method="raps"))


def test_a_coverage_that_was_not_calibrated_is_refused(client: Client, picture: Path) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"0\.8 was not calibrated; there are 0\.9, 0.95"
    ):
        client.classify(picture, model="colours", trust=TrustRequest(coverage=0.8))


def test_the_map_of_a_linear_head_explains_all_of_the_logit(client: Client, picture: Path) -> None:
    answer = client.classify(picture, model="colours", cam=Cam(top=3))
    for cam, prediction in zip(answer.cams, answer.predictions, strict=True):
        assert cam.explained == pytest.approx(1.0, abs=1e-6)
        assert cam.array.mean() + BIAS[cam.class_id] == pytest.approx(prediction.logit, abs=1e-6)
        assert cam.against is None


@pytest.mark.parametrize(("check", "copies"), [(True, 16), (8, 8)])
def test_a_map_is_tried_on_masked_copies(
    client: Client, tmp_path: Path, check: int | bool, copies: int
) -> None:
    """Of a picture whose left half is green: without it the class is not green."""
    half = flat(0, 0, 90)
    half.paste(flat(0, 255, 0).crop((0, 0, half.width // 2, half.height)))
    half.save(path := tmp_path / "half.png")
    (cam,) = client.classify(path, model="colours", cam=Cam(class_ids=[GREEN], check=check)).cams
    assert cam.check is not None
    assert cam.check.copies == copies
    assert cam.check.drop > cam.check.random_drop


def test_every_model_has_a_map_by_occlusion(client: Client, picture: Path) -> None:
    answer = client.classify(picture, model="plain", cam=Cam(method="occlusion", top=2))
    assert [cam.array.shape for cam in answer.cams] == [(5, 5), (5, 5)]
    assert all(cam.check is None for cam in answer.cams)
    with pytest.raises(InvalidArgumentError, match="one map is tried at a time"):
        client.classify(picture, model="plain", cam=Cam(top=2, check=True))


def test_without_the_constants_no_share_is_said(client: Client, picture: Path) -> None:
    (cam,) = client.classify(picture, model="plain", cam=Cam()).cams
    assert cam.explained is None


@pytest.mark.parametrize("against", [BLUE, -2])
def test_a_map_against_a_class_is_that_of_the_difference_of_two_logits(
    client: Client, picture: Path, against: int
) -> None:
    answer = client.classify(picture, model="colours", cam=Cam(against=against), top_k=3)
    (cam,) = answer.cams
    rival = BLUE if against >= 0 else answer.predictions[1].class_id
    both = client.classify(picture, model="colours", cam=Cam(class_ids=[GREEN, rival])).cams
    assert (cam.class_id, cam.against) == (GREEN, rival)
    assert cam.array == pytest.approx(both[0].array - both[1].array)
    logits = {x.class_id: x.logit for x in answer.predictions}
    constants = BIAS[GREEN] - BIAS[rival]
    assert cam.array.mean() + constants == pytest.approx(logits[GREEN] - logits[rival], abs=1e-6)
    assert cam.explained == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("cam", "reason"),
    [
        (Cam(class_ids=[BLUE], against=BLUE), "AGAINST_ITSELF"),
        (Cam(against=-1), "AGAINST_ITSELF"),
        (Cam(against=GREEN), "AGAINST_ITSELF"),
        (Cam(against=3), "AGAINST_OUT_OF_RANGE"),
        (Cam(against=-4), "AGAINST_OUT_OF_RANGE"),
    ],
)
def test_a_class_that_nothing_can_be_explained_against_is_refused(
    client: Client, picture: Path, cam: Cam, reason: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        client.classify(picture, model="colours", cam=cam)
    assert caught.value.reason == reason
    assert caught.value.field_violations[0].field == "cam.against"


@pytest.fixture
def run(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = classify.main([*map(str, arguments), "--repository", str(repository)])
        return code, *capsys.readouterr()

    return run


def test_the_command_prints_the_trust_as_json(
    run: Callable[..., tuple[int, str, str]], picture: Path
) -> None:
    code, out, _ = run(picture, "--model", "colours", "--trust", "--against", "blue", "--json")
    record = json.loads(out)
    assert code == 0
    assert record["trust"].keys() == {
        "coverage",
        "prediction_set",
        "ood_percentile",
        "abstained",
    }
    assert record["trust"]["coverage"] == 0.9
    assert 0 < record["predictions"][0]["confidence"] < 1
    (cam,) = record["cams"]
    assert (cam["class_id"], cam["against"]) == (GREEN, BLUE)
    assert cam["explained"] == pytest.approx(1, abs=1e-5)
    code, out, _ = run(picture, "--model", "plain", "--cam", "--json")
    record = json.loads(out)
    assert record["trust"] is None
    assert record["predictions"][0]["confidence"] is None
    assert (record["cams"][0]["against"], record["cams"][0]["explained"]) == (None, None)


def test_the_command_says_it_in_words(
    run: Callable[..., tuple[int, str, str]], picture: Path
) -> None:
    code, out, _ = run(picture, "--model", "colours", "--coverage", "0.95", "--against", "#3")
    assert code == 0
    assert "of the answers with this score are right" in " ".join(out.split())
    assert "the set for a coverage of 0.95: green" in out
    assert " % of the pictures of the calibration" in out
    assert "cam of green against blue: " in " ".join(out.split())
    assert "explains 100.0% of the difference of the logits" in " ".join(out.split())


def test_the_command_refuses_what_it_cannot_do(
    run: Callable[..., tuple[int, str, str]],
    picture: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, said in (
        (["--coverage", "1.2"], "--coverage 1.2 is not above 0 and below 1"),
        (["--against", "purple"], "'purple' is no label of the model"),
    ):
        with pytest.raises(SystemExit) as caught:
            run(picture, "--model", "colours", *arguments)
        assert caught.value.code == 2
        assert said in capsys.readouterr().err
    code, _, err = run(picture, "--model", "plain", "--trust")
    assert code == 1
    assert "foveate calibrate BUNDLE --data DIR" in err


def test_the_command_says_what_a_map_is_worth(
    run: Callable[..., tuple[int, str, str]], picture: Path
) -> None:
    code, out, err = run(picture, "--model", "colours", "--check", "--json")
    assert code == 0, err
    assert json.loads(out)["cams"][0]["check"].keys() == {"drop", "random_drop", "copies"}
    _, told, _ = run(picture, "--model", "colours", "--check", "--no-show")
    assert "without what it shows the score falls by" in told
