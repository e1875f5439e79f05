"""A recommendation counts only where it was measured."""

import os
from pathlib import Path

import pytest

from foveate_runtime.backends.recommended import (
    MOST_BYTES,
    RECOMMENDED_FILE,
    Recommended,
    RecommendedError,
    read_recommended,
    write_recommended,
)
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.folder import model_names


@pytest.fixture
def entry(colours: Bundle) -> Recommended:
    return Recommended.here(colours, variant="fp32", backend="onnxruntime", device="cpu")


def test_what_was_measured_here_counts(colours: Bundle, entry: Recommended) -> None:
    assert entry.mismatch(colours, "cpu") == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"digest": "0" * 64, "version": 7}, "another bundle was measured, version 7"),
        ({"device": "cuda:0"}, "the device cuda:0 was measured, not cpu"),
        ({"processor": "an abacus"}, "the processor was an abacus and is "),
        ({"cores": 4096}, "the number of cores was 4096 and is "),
        ({"engine": "0.1"}, "the version of onnxruntime was 0.1 and is "),
        ({"gpus": ("a GPU",)}, "the list of GPUs was a GPU and is "),
        ({"backend": "abacus"}, "no backend 'abacus'"),
    ],
)
def test_what_was_measured_elsewhere_does_not_count(
    colours: Bundle, entry: Recommended, change: dict[str, object], reason: str
) -> None:
    other = entry.model_copy(update=change)
    assert other.mismatch(colours, "cpu").startswith(reason)


def test_entries_are_kept_by_model_and_are_no_model(tmp_path: Path, entry: Recommended) -> None:
    assert read_recommended(tmp_path) == {}
    odd = entry.model_copy(update={"processor": 'a "quoted" processor\u00ae \U0001f600'})
    write_recommended(tmp_path, {"one": odd, "two": entry}, ["one", "two"])
    assert read_recommended(tmp_path) == {"one": odd, "two": entry}
    # Nothing fits `two` any more; `one` was not measured again.
    path = write_recommended(tmp_path, {}, ["two"])
    assert read_recommended(tmp_path) == {"one": odd}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o644
    assert model_names(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models", "no TOML"),
        ("[models.colours]\nvariant = 'fp32'", "'models.colours.backend': Field required"),
        ("", "'models': Field required"),
        ("[models]\n[others]", "'others': Extra inputs"),
        ("#" * (MOST_BYTES + 1), "larger than the limit of 1048576 bytes"),
        ("\udcff", "no TOML"),
    ],
)
def test_a_broken_file_is_refused_and_written_anew(
    tmp_path: Path, entry: Recommended, text: str, message: str
) -> None:
    (tmp_path / RECOMMENDED_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RecommendedError, match=message):
        read_recommended(tmp_path)
    write_recommended(tmp_path, {"colours": entry}, ["colours"])
    assert read_recommended(tmp_path) == {"colours": entry}


def test_a_pipe_in_its_place_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / RECOMMENDED_FILE)
    with pytest.raises(RecommendedError, match="no plain file"):
        read_recommended(tmp_path)


def test_a_text_cannot_forge_a_line_of_the_log(tmp_path: Path, entry: Recommended) -> None:
    forged = entry.model_copy(update={"processor": "one\nloaded"})
    write_recommended(tmp_path, {"colours": forged}, ["colours"])
    with pytest.raises(RecommendedError, match="processor"):
        read_recommended(tmp_path)
