"""Tensors survive their way through bytes, and damaged ones are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from foveate.inference.open_inference_pb2 import InferTensorContents, ModelInferRequest
from foveate_serve.errors import InvalidRequestError
from foveate_serve.rpc.oip import tensors
from foveate_serve.rpc.oip.tensors import DATATYPES, InputTensor

SHAPES = hnp.array_shapes(max_dims=4, max_side=6)
NUMBERS = st.sampled_from([np.dtype(np.uint8), np.dtype(np.int64)]).flatmap(
    lambda dtype: hnp.arrays(dtype, SHAPES)
)
TEXTS = st.lists(st.binary(max_size=300), min_size=1, max_size=20)


def tensor(
    datatype: str,
    shape: tuple[int, ...],
    raw: bytes | None = None,
    contents: InferTensorContents | None = None,
) -> InputTensor:
    message = ModelInferRequest.InferInputTensor(
        name="x", datatype=datatype, shape=shape, contents=contents
    )
    return InputTensor(field="inputs[0]", message=message, raw=raw)


@given(NUMBERS)
def test_numbers_survive_as_plain_bytes(array: NDArray[np.generic]) -> None:
    raw = tensors.write_numbers(array)
    found = tensors.read_numbers(tensor(DATATYPES[array.dtype], array.shape, raw), array.dtype)
    np.testing.assert_array_equal(found, array)


@given(NUMBERS)
def test_numbers_survive_as_contents(array: NDArray[np.generic]) -> None:
    values = array.ravel().tolist()
    contents = (
        InferTensorContents(uint_contents=values)
        if array.dtype == np.uint8
        else InferTensorContents(int64_contents=values)
    )
    source = tensor(DATATYPES[array.dtype], array.shape, contents=contents)
    found = tensors.read_numbers(source, array.dtype)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@given(hnp.arrays(np.float32, SHAPES))
def test_answers_are_little_endian_singles(array: NDArray[np.float32]) -> None:
    raw = tensors.write_numbers(array)
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4").reshape(array.shape), array)
    assert tensors.write_numbers(array.astype(">f4")) == raw


@given(TEXTS)
def test_bytes_survive(values: list[bytes]) -> None:
    shape = (len(values), 1)
    raw = tensors.write_bytes(values)
    assert len(raw) == sum(4 + len(value) for value in values)
    assert tensors.read_bytes(tensor("BYTES", shape, raw)) == values
    contents = InferTensorContents(bytes_contents=values)
    assert tensors.read_bytes(tensor("BYTES", shape, contents=contents)) == values


@given(TEXTS, st.data())
def test_bytes_that_were_cut_or_grew_are_refused(values: list[bytes], data: st.DataObject) -> None:
    raw = tensors.write_bytes(values)
    cut = raw[: data.draw(st.integers(0, len(raw) - 1))]
    grown = raw + data.draw(st.binary(min_size=1, max_size=8))
    for damaged in (cut, grown):
        with pytest.raises(InvalidRequestError):
            tensors.read_bytes(tensor("BYTES", (len(values),), damaged))


@given(
    st.sampled_from(["UINT8", "INT64", "BYTES", "FP32", "", "\u2603"]),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=10),
    st.binary(max_size=100),
)
def test_whatever_the_shape_says_memory_is_not_taken(
    datatype: str, shape: list[int], raw: bytes
) -> None:
    source = tensor(datatype, tuple(shape), raw)
    for read in (
        lambda: tensors.read_numbers(source, np.dtype(np.uint8)).nbytes,
        lambda: tensors.read_numbers(source, np.dtype(np.int64)).nbytes,
        lambda: sum(4 + len(value) for value in tensors.read_bytes(source)),
    ):
        try:
            size = read()
        except InvalidRequestError:
            continue
        assert size == len(raw)


@pytest.mark.parametrize("value", [256, 2**32 - 1])
def test_a_pixel_must_fit_its_byte(value: int) -> None:
    contents = InferTensorContents(uint_contents=[0, 255, value])
    with pytest.raises(InvalidRequestError) as raised:
        tensors.read_numbers(tensor("UINT8", (3,), contents=contents), np.dtype(np.uint8))
    assert raised.value.reason == "VALUE_OUT_OF_RANGE"
    assert raised.value.metadata["limit"] == "255"


def test_contents_are_for_few_elements() -> None:
    contents = InferTensorContents(uint_contents=[0] * (tensors.MAX_CONTENTS + 1))
    source = tensor("UINT8", (tensors.MAX_CONTENTS + 1,), contents=contents)
    with pytest.raises(InvalidRequestError) as raised:
        tensors.read_numbers(source, np.dtype(np.uint8))
    assert raised.value.metadata["limit"] == str(tensors.MAX_CONTENTS)


def test_a_shape_of_a_million_dimensions_is_refused_unread() -> None:
    source = tensor("UINT8", (1,) * 1_000_000, b"\0")
    assert len(source.shape) == tensors.MAX_DIMENSIONS + 1
    with pytest.raises(InvalidRequestError, match="1000000 dimensions"):
        tensors.read_numbers(source, np.dtype(np.uint8))
