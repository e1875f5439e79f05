"""URLs that name places, and those that are refused without a secret in what is said."""

import pytest

from foveate_runtime.remote.location import Location, LocationError, is_url, redacted


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/models",
        "gs://bucket",
        "az://container/models",
        "hf://owner/name@v1",
        "oci://127.0.0.1:5000/team/mnist:1",
        "oci://registry.example/mnist@sha256:" + "0" * 64,
        "file:///srv/models",
    ],
)
def test_a_url_is_taken_as_it_is(url: str) -> None:
    assert is_url(url)
    assert str(Location.parse(url)) == url


def test_a_path_is_no_url() -> None:
    assert not is_url("models/s3:/x")
    assert not is_url("./file")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://host/models", "there is no scheme 'https'"),
        ("s3://key:s3cret@bucket/models", "holds no credentials"),
        ("oci://me:s3cret@host/name", "holds no credentials"),
        ("az://container/models?sig=s3cret", "neither ? nor #"),
        ("s3://bucket/../models", ". or .."),
        ("s3://bucket/a//models", "empty part"),
        ("s3:///models", "names no place"),
        ("file://host/models", "file:///"),
        ("s3://bucket/mod\nels", "no control characters"),
    ],
)
def test_what_names_no_place_is_refused(url: str, told: str) -> None:
    with pytest.raises(LocationError) as caught:
        Location.parse(url)
    assert told in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_errors_of_libraries_lose_their_secrets() -> None:
    text = "GET https://me:s3cret@host/b?X-Amz-Signature=s3cret&list-type=2 failed"
    assert redacted(text) == "GET https://***@host/b?*** failed"
