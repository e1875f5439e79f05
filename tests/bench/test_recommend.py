"""What is recommended follows from the measurements, and a server takes it."""

import re
import tomllib
from pathlib import Path

import grpc
import pytest

from foveate.v1 import classifier_service_pb2 as messages
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate_bench.recommend import Choice, Objective, Recommendation, recommend
from foveate_bench.results import Accuracy, Measurement
from foveate_runtime.bundle.bundle import Bundle
from foveate_serve import cli
from foveate_serve.assembly import make_engine
from foveate_serve.settings import SettingsError, load_settings

from ..conftest import served
from .conftest import measurement

THROUGHPUT = Objective(kind="throughput")


def accuracy(variant: str, top1: float, backend: str = "onnxruntime") -> Accuracy:
    return Accuracy(
        model="colours",
        version=1,
        variant=variant,
        backend=backend,
        device="cpu",
        data="labelled",
        images=1000,
        top1=top1,
        top5=1,
    )


def with_memory(found: Measurement, megabytes: int) -> Measurement:
    return found.model_copy(update={"peak_memory_bytes": megabytes << 20})


def best(*measured: Measurement, objective: Objective = THROUGHPUT, **options: object) -> Choice:
    (choice,) = found(*measured, objective=objective, **options).choices
    return choice


def found(
    *measured: Measurement,
    objective: Objective = THROUGHPUT,
    accuracies: tuple[Accuracy, ...] = (),
    max_drop: float = 1.0,
) -> Recommendation:
    return recommend(measured, accuracies, objective, max_drop=max_drop)


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("p99=30", Objective(kind="p99", p99_ms=30)),
        ("p99=2.5ms", Objective(kind="p99", p99_ms=2.5)),
        ("p99=30 ms", Objective(kind="p99", p99_ms=30)),
        ("throughput", THROUGHPUT),
        ("memory", Objective(kind="memory")),
    ],
)
def test_an_objective_is_read(text: str, objective: Objective) -> None:
    assert Objective.parse(text) == objective


@pytest.mark.parametrize("text", ["p99", "p99=", "p99=0", "p99=-1", "p99=nan", "p99=soon", "speed"])
def test_a_bad_objective_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no time above 0|is none of p99=MILLISECONDS"):
        Objective.parse(text)


def test_the_most_pictures_a_second_win() -> None:
    one, many = measurement((1.0, 1.0, 1.0)), measurement((4.0, 4.0, 4.0), batch=8)
    choice = best(one, many)
    assert choice.case == many.case
    assert choice.images_per_second == pytest.approx(2000)
    assert choice.tied == ()
    assert choice.why == (
        "colours fp32 on onnxruntime, cpu, 2 threads, logits, batch 8 has 2000.0 pictures a "
        "second, a p99 of 4.00 ms a run and 48 MiB, the most pictures a second of the 2 cases; "
        "fp32 loses no accuracy."
    )


def test_a_bound_leaves_out_what_is_slower() -> None:
    one, many = measurement((1.0, 1.0, 1.0)), measurement((4.0, 4.0, 4.1), batch=8)
    bound = Objective(kind="p99", p99_ms=4.05)
    choice = best(one, many, objective=bound)
    assert choice.case == one.case
    assert "of the 1 case with a p99 of at most 4.05 ms" in choice.why
    nothing = found(one, many, objective=Objective(kind="p99", p99_ms=0.5))
    assert nothing.choices == ()
    assert nothing.refusals[0].reason == (
        f"the shortest p99 is 1.00 ms, of {one.case}; the limit is 0.5 ms"
    )


def test_the_least_memory_wins_where_that_is_wanted() -> None:
    small = with_memory(measurement((9.0, 9.0, 9.0)), 100)
    large = with_memory(measurement((1.0, 1.0, 1.0), backend="openvino"), 150)
    choice = best(small, large, objective=Objective(kind="memory"))
    assert choice.case == small.case
    assert "100 MiB, the least memory of the 2 cases" in choice.why


def test_memory_that_differs_by_less_than_processes_do_is_a_tie() -> None:
    small = with_memory(measurement((9.0, 9.0), batch=4), 1000)
    plainer = with_memory(measurement((9.0, 9.0)), 1009)
    larger = with_memory(measurement((9.0, 9.0), batch=2), 1011)
    choice = best(small, plainer, larger, objective=Objective(kind="memory"))
    assert choice.case == plainer.case
    assert choice.tied == (small.case,)


def test_accuracy_may_be_lost_as_far_as_is_allowed() -> None:
    full, quick = measurement((4.0, 4.0)), measurement((1.0, 1.0), variant="int8")
    scored = (accuracy("fp32", 0.75), accuracy("int8", 0.739))
    strict = best(full, quick, accuracies=scored, max_drop=1.0)
    assert (strict.case, strict.drop_points) == (full.case, 0)
    lenient = best(full, quick, accuracies=scored, max_drop=1.1)
    assert lenient.case == quick.case
    assert lenient.drop_points == pytest.approx(1.1)
    assert "its top-1 is 1.10 points below fp32's" in lenient.why


def test_a_variant_of_unknown_accuracy_is_not_chosen() -> None:
    full, quick = measurement((4.0, 4.0)), measurement((1.0, 1.0), variant="int8")
    assert best(full, quick).case == full.case
    # The accuracy of another backend's kernels is not this one's.
    elsewhere = (accuracy("fp32", 0.75), accuracy("int8", 0.75, backend="openvino"))
    assert best(full, quick, accuracies=elsewhere).case == full.case
    nothing = found(quick)
    assert nothing.choices == ()
    assert "no variant is known to lose at most 1 point" in nothing.refusals[0].reason
    assert "--data" in nothing.refusals[0].remedy


def test_of_those_that_tie_the_plainest_is_chosen() -> None:
    # Of 8 pictures each run: 2000, 1600 and 2000 a second against 1900, 1700 and 1900.
    batched = measurement((4.0, 5.0, 4.0), batch=8)
    plain = measurement((1 / 1.9, 1 / 1.7, 1 / 1.9), threads=1)
    slow = measurement((9.0, 9.0, 9.0), backend="torch")
    choice = best(batched, plain, slow)
    assert choice.case == plain.case
    assert choice.tied == (batched.case,)
    assert choice.why.endswith(
        f"; it ties for the most pictures a second of the 3 cases with {batched.case}, "
        "and is the plainest."
    )
    quick_to_load = plain.model_copy(
        update={
            "case": plain.case.model_copy(update={"backend": "openvino"}),
            "load_seconds": 0.1,
        }
    )
    assert best(batched, plain, quick_to_load).case.backend == "openvino"


def test_maps_and_feature_maps_do_not_decide() -> None:
    plain = measurement((4.0, 4.0))
    with_map = measurement((1.0, 1.0), outputs="cam", backend="openvino")
    assert best(plain, with_map).case == plain.case


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    chosen = measurement((1.0, 1.0), backend="openvino", batch=3, threads=1)
    return found(chosen).write(tmp_path)


def test_the_profile_says_what_it_is_for(profile: Path) -> None:
    text = profile.read_text(encoding="utf-8")
    assert text.startswith(
        "# foveate bench: the most pictures a second, at most 1 point of top-1 lost against fp32."
    )
    assert tomllib.loads(text) == {
        "models": {
            "colours": {
                "variant": "fp32",
                "backend": "openvino",
                "device": "cpu",
                "engine_threads": 1,
                "max_batch": 3,
            }
        }
    }


def test_flags_and_environment_win_over_the_profile_and_it_over_the_file(
    profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "foveate.toml"
    file.write_text(
        'repository = "models"\nmax_batch = 5\n'
        '[models.colours]\nmax_batch = 6\nmax_queue = 7\nbackend = "torch"\n'
        "[models.others]\nmax_batch = 9\n",
        encoding="utf-8",
    )
    own = load_settings({}, file, profile).of("colours")
    assert (own.max_batch, own.max_queue, own.backend) == (3, 7, "openvino")
    assert load_settings({}, file, profile).of("others").max_batch == 9
    monkeypatch.setenv("FOVEATE_SERVE_ENGINE_THREADS", "4")
    own = load_settings({"max_batch": "2"}, file, profile).of("colours")
    # What the file says of this one model was above the flags before, and stays there.
    assert (own.max_batch, own.engine_threads, own.backend) == (6, 4, "openvino")
    own = load_settings({"repository": "models", "max_batch": "2"}, None, profile).of("colours")
    assert (own.max_batch, own.engine_threads, own.variant) == (2, 4, "fp32")
    monkeypatch.setenv("FOVEATE_SERVE_MODELS", '{"colours": {"variant": "fp16"}}')
    own = load_settings({"repository": "models"}, None, profile).of("colours")
    assert (own.variant, own.backend) == ("fp16", "openvino")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models.colours]\nmax_bach = 2", "models.colours.max_bach: there is no such setting"),
        ("[models.colours]\nmax_queue = 2", "models.colours.max_queue: there is no such setting"),
        ("max_batch = 2\n[models]", "max_batch: there is no such setting in a profile"),
        ("[models.colours]\nmax_batch = 0", "models.colours.max_batch: Input should be greater"),
        ("", "models: Field required"),
        ("[models", "profile.toml: "),
    ],
)
def test_a_bad_profile_is_refused(
    profile: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    profile.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=re.escape(message)):
        load_settings({"repository": "models"}, None, profile)
    assert cli.main(["--repository", "models", "--profile", str(profile)]) == cli.WRONG_USAGE
    assert message in capsys.readouterr().err


def test_the_printed_configuration_shows_what_comes_of_it(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--repository", "models", "--profile", str(profile), "--engine-threads", "2"]
    assert cli.main([*arguments, "--print-config"]) == cli.DONE
    printed = tomllib.loads(capsys.readouterr().out)
    assert printed["engine_threads"] == 2
    assert printed["models"]["colours"] == {
        "variant": "fp32",
        "backend": "openvino",
        "device": "cpu",
        "max_batch": 3,
    }


def test_a_server_runs_what_was_recommended(colours: Bundle, profile: Path) -> None:
    repository = colours.path.parent.parent
    with (
        served(repository, "--profile", profile) as address,
        grpc.insecure_channel(address) as channel,
    ):
        stub = ClassifierServiceStub(channel)
        model = stub.GetModel(messages.GetModelRequest(name="colours")).model
        raw = messages.RawImage(height=8, width=8, channels=3, data=bytes(192))
        asked = messages.ClassifyRequest(model="colours", raw=raw, timing=True)
        timing = stub.Classify(asked).timing
    assert (model.backend, model.batching.max_batch) == ("openvino", 3)
    assert (timing.backend, timing.variant, timing.device) == ("openvino", "fp32", "cpu")


async def test_each_engine_has_the_threads_recommended(colours: Bundle, profile: Path) -> None:
    settings = load_settings({"repository": str(colours.path.parent.parent)}, None, profile)
    engine = make_engine(settings)
    await engine.repository.open()
    try:
        runner = engine.repository.get("colours", "").runner
        assert (runner.backend, runner.threads) == ("openvino", 1)
    finally:
        await engine.close()
