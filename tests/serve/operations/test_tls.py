"""TLS: who gets through, and what a renewed certificate changes."""

import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import trustme

from foveate.v1.classifier_service_pb2 import ListModelsRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub

from ...conftest import BOTH

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def roots(authority: trustme.CA) -> bytes:
    return authority.cert_pem.bytes()


def result(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """Return the code of a call over such a channel."""
    options = [("grpc.enable_retries", 0)]
    channel = (
        grpc.insecure_channel(address, options)
        if credentials is None
        else grpc.secure_channel(address, credentials, options)
    )
    with channel:
        try:
            ClassifierServiceStub(channel).ListModels(ListModelsRequest(), timeout=60)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def client(authority: trustme.CA, issued: trustme.LeafCert | None = None):
    if issued is None:
        return grpc.ssl_channel_credentials(roots(authority))
    return grpc.ssl_channel_credentials(
        roots(authority), issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes()
    )


@BOTH
def test_tls_takes_only_those_who_speak_it_and_trust_the_authority(
    start: Callable, tls, authority: trustme.CA
) -> None:
    server = start(*tls.flags)
    assert result(server.address, client(authority)) is grpc.StatusCode.OK
    assert result(server.address, None) is UNAVAILABLE
    assert result(server.address, client(trustme.CA())) is UNAVAILABLE
    assert server.stop() == 0


@BOTH
def test_a_client_of_tls_gets_nothing_from_a_server_in_the_clear(
    start: Callable, authority: trustme.CA
) -> None:
    assert result(start().address, client(authority)) is UNAVAILABLE


@BOTH
def test_mutual_tls_takes_only_the_certificates_of_its_authority(
    start: Callable, tls, authority: trustme.CA, tmp_path: Path
) -> None:
    clients = trustme.CA()
    (tmp_path / "clients.pem").write_bytes(roots(clients))
    server = start(*tls.flags, "--tls-client-ca", tmp_path / "clients.pem")
    known, stranger = clients.issue_cert("a@b.example"), trustme.CA().issue_cert("a@b.example")
    assert result(server.address, client(authority, known)) is grpc.StatusCode.OK
    assert result(server.address, client(authority)) is UNAVAILABLE
    assert result(server.address, client(authority, stranger)) is UNAVAILABLE
    # Signed by the server's own authority, which is not the clients'.
    own = authority.issue_cert("a@b.example")
    assert result(server.address, client(authority, own)) is UNAVAILABLE


@BOTH
def test_a_renewed_certificate_is_shown_to_the_next_client(
    start: Callable, tls, authority: trustme.CA
) -> None:
    server = start(*tls.flags)
    host, port = server.address.split(":")
    before = ssl.get_server_certificate((host, int(port)))
    renewed = authority.issue_cert("localhost", "127.0.0.1")
    tls.write(renewed)
    after = ssl.get_server_certificate((host, int(port)))
    assert after == renewed.cert_chain_pems[0].bytes().decode() != before
    # Half a renewal, or none that can be read, leaves the certificate in use.
    tls.certificate.unlink()
    assert ssl.get_server_certificate((host, int(port))) == after
    tls.certificate.write_text("no certificate", encoding="ascii")
    assert ssl.get_server_certificate((host, int(port))) == after
    assert result(server.address, client(authority)) is grpc.StatusCode.OK


def test_a_key_that_cannot_be_read_is_wrong_usage(tls, tmp_path: Path) -> None:
    tls.key.unlink()
    foveate = Path(sys.executable).with_name("foveate")
    done = subprocess.run(
        [foveate, "serve", "--repository", tmp_path, "--address", "127.0.0.1:0", *tls.flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("foveate serve: tls_key: ")
