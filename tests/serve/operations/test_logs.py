"""Logs in JSON and the ids of requests."""

import json
import logging
import resource
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

import grpc
import pytest

from foveate.v1.classifier_service_pb2 import ClassifyRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate_serve.log_context import FIELDS, REQUEST_ID
from foveate_serve.observe.logs import JsonFormatter

from ...conftest import BOTH


def trailing_id(call: grpc.Call) -> str:
    return dict(call.trailing_metadata())["x-request-id"]


@BOTH
def test_every_answer_and_every_line_of_a_call_have_its_id(
    start: Callable, picture: ClassifyRequest, error_of: Callable
) -> None:
    server = start("--log-format", "json", "--log-requests")
    with server.channel() as channel:
        classify = ClassifierServiceStub(channel).Classify
        own = (("x-request-id", "mine-1"),)
        assert trailing_id(classify.with_call(picture, timeout=60, metadata=own)[1]) == "mine-1"
        made = trailing_id(classify.with_call(picture, timeout=60)[1])
        odd = (("x-request-id", "no spaces, please"),)
        other = trailing_id(classify.with_call(picture, timeout=60, metadata=odd)[1])
        assert made != other != "no spaces, please"
        with pytest.raises(grpc.RpcError) as raised:
            classify(ClassifyRequest(model="none", encoded=b"x"), timeout=60, metadata=own)
        # The details of the error and the id share the trailer.
        assert error_of(raised.value).reason == "MODEL_NOT_FOUND"
        assert trailing_id(raised.value) == "mine-1"
    assert server.stop() == 0
    lines = [line for line in server.log_lines() if "method" in line]
    assert [(line["request_id"], line["code"]) for line in lines] == [
        ("mine-1", "OK"),
        (made, "OK"),
        (other, "OK"),
        ("mine-1", "NOT_FOUND"),
    ]
    assert all(line["method"] == "/foveate.v1.ClassifierService/Classify" for line in lines)
    assert all(line["level"] == "info" and line["seconds"] > 0 for line in lines)


def test_a_line_in_text_ends_with_the_id(start: Callable, picture: ClassifyRequest) -> None:
    server = start("--log-requests")
    server.classify(metadata=(("x-request-id", "mine-2"),))
    assert server.stop() == 0
    lines = server.log.read_text(encoding="utf-8").splitlines()
    assert [line.endswith(" ms [mine-2]") for line in lines if "/Classify " in line] == [True]
    assert not any("[" in line for line in lines if "/Classify " not in line)


def test_an_exception_and_a_newline_stay_on_their_line() -> None:
    REQUEST_ID.set("id")
    try:
        int("no number")
    except ValueError as error:
        record = logging.LogRecord("here", logging.ERROR, "", 0, "%s\n", ("text",), None)
        record.exc_info = (type(error), error, error.__traceback__)
        setattr(record, FIELDS, {"extra": 1})
    line = JsonFormatter().format(record)
    assert "\n" not in line
    read = json.loads(line)
    assert (read["message"], read["request_id"], read["extra"]) == ("text\n", "id", 1)
    assert read["exception"].endswith("'no number'")


def test_the_limit_of_open_files_is_raised_and_logged(start: Callable) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        server = start("--log-format", "json")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = min(hard, 1 << 20)
    told = [line for line in server.log_lines() if line["logger"] == "foveate_serve.files"]
    assert [line["message"] for line in told] == [
        f"at most {most} files and connections can be open"
    ]


@BOTH
def test_a_stranger_writes_no_line_of_the_log(start: Callable) -> None:
    server = start()
    host, _, port = server.address.rpartition(":")
    forged = b"\x1b[31m\n2026-01-01 INFO forged"
    goaway = struct.pack(">II", 0, 1) + forged
    head = len(goaway).to_bytes(3) + b"\x07\x00" + bytes(4)
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04\x00" + bytes(4))
        stranger.sendall(head + goaway)
        # The server has read it once it closes the connection, or answers another.
        stranger.settimeout(1)
        with suppress(TimeoutError):
            while stranger.recv(4096):
                pass
    server.classify()
    assert server.stop() == 0
    log = server.log.read_bytes()
    assert b"forged" not in log
    assert b"\x1b" not in log
