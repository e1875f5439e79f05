"""What clients send beside the pictures whose answers are compared."""

import json
import random
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.error import HTTPError

import grpc

from foveate.v1.classifier_service_pb2 import ClassifyRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate_client import Cam, Client, Features, FoveateError, RepositoryClient

from ..faults.honest import pictures

_TIMEOUT_SECONDS = 30.0
_PAUSE_SECONDS = 0.05
_RELOAD_SECONDS = 20.0


class Traffic:
    """A thread for each kind of traffic, from entering to leaving the context.

    `seen` counts by kind and outcome what became of it.
    """

    def __init__(self, address: str, http: str, model: str) -> None:
        self.seen: Counter[str] = Counter()
        self._address, self._http, self._model = address, http, model
        self._pictures = pictures()
        self._ending = threading.Event()
        self._client = Client(address)
        self._layer = self._client.model(model).layers[0].name
        self._repository = RepositoryClient(address)
        kinds = (self.explained, self.bad, self.cancelled, self.vanishing, self.over_http)
        self._threads = [threading.Thread(target=self._go_on, args=(kind,)) for kind in kinds]
        self._threads.append(
            threading.Thread(target=self._go_on, args=(self.reload, _RELOAD_SECONDS))
        )

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._repository.close()
        self._client.close()

    def explained(self) -> str:
        """Ask for maps, a checked one now and then, and a feature map."""
        check = 8 if random.random() < 0.1 else 0  # noqa: S311 - traffic
        answer = self._client.classify(
            random.choice(self._pictures),  # noqa: S311 - traffic
            model=self._model,
            cam=Cam(top=1, check=check),
            feature_maps=[Features(self._layer, [0, 1])],
            timeout=_TIMEOUT_SECONDS,
        )
        return "OK" if answer.cams and answer.feature_maps else "EMPTY"

    def bad(self) -> str:
        """Send a picture that is cut off."""
        whole = random.choice(self._pictures)  # noqa: S311 - traffic
        self._client.classify(whole[: len(whole) // 3], model=self._model, timeout=_TIMEOUT_SECONDS)
        return "TAKEN"

    def cancelled(self) -> str:
        """Ask, and lose interest at once or a little later."""
        with grpc.insecure_channel(self._address) as channel:
            request = ClassifyRequest(model=self._model, encoded=self._pictures[0])
            stub: Any = ClassifierServiceStub(channel)
            call = stub.Classify.future(request)
            time.sleep(random.random() * 0.03)  # noqa: S311 - traffic
            call.cancel()
        return "OK"

    def vanishing(self) -> str:
        """Connect, say hello, send a part of something, and go without a word."""
        host, _, port = self._address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=_TIMEOUT_SECONDS) as one:
            one.sendall(
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0\0\xff\xff\1\4\0\0\0\1x"
            )
        return "OK"

    def over_http(self) -> str:
        """Post a picture over HTTP."""
        url = f"http://{self._http}/v1/models/{self._model}:classify?top_k=1&cam=true"
        request = urllib.request.Request(url, data=self._pictures[1])
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            return "OK" if json.load(answer)["cams"] else "EMPTY"

    def reload(self) -> str:
        """Load the model's version anew."""
        self._repository.reload(self._model, "1")
        return "OK"

    def _go_on(self, kind: Callable[[], str], pause: float = _PAUSE_SECONDS) -> None:
        while not self._ending.wait(pause):
            outcome = "UNREACHABLE"
            with suppress(OSError):
                try:
                    outcome = kind()
                except FoveateError as error:
                    outcome = getattr(error, "code", type(error).__name__)
                except HTTPError as error:
                    error.close()
                    outcome = f"HTTP {error.code}"
            self.seen[f"{kind.__name__}: {outcome}"] += 1
