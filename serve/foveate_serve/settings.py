"""The server's settings, from flags, environment and files, validated as one model."""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from foveate_runtime.cores import CAN_PIN, count_cores
from foveate_runtime.imaging.decode import MAX_PIXELS
from foveate_runtime.remote.location import Location, LocationError, is_url
from foveate_serve.repository.labels import VersionLabels

ENV_PREFIX = "FOVEATE_SERVE_"

_MIB = 1 << 20

Count = Annotated[int, Field(gt=0)]
_LARGEST_PORT = 65_535


def _check_port(address: str) -> str:
    # Some listeners would use a larger number modulo 65,536.
    if int(address.rpartition(":")[2]) > _LARGEST_PORT:
        raise ValueError(f"the port must be {_LARGEST_PORT} or less")
    return address


Address = Annotated[
    str,
    Field(pattern=r"^(\[[^\]]+\]|[^:]+):[0-9]{1,5}$"),
    AfterValidator(_check_port),
]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Counts = Annotated[
    tuple[Count, ...],
    NoDecode,
    # Flags and variables give the numbers as one text.
    BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value),
]


def _read_place(value: object) -> object:
    if isinstance(value, str):
        return str(Location.parse(value)) if is_url(value) else Path(value)
    return value


Place = Annotated[Path | str, BeforeValidator(_read_place)]
"""A folder, or the URL of a repository elsewhere."""


TransportName = Literal["grpcio", "http2"]


class SettingsError(Exception):
    """A setting is bad; the message names it."""


class EngineSettings(BaseModel):
    """A model's engine, as `foveate bench` recommends it: a table [models.NAME] of a profile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str | None = Field(
        default=None,
        description="the precision to load; unset takes what `foveate bench --recommend` measured "
        "here, or else each bundle's first that is fast here",
    )
    backend: str | None = Field(
        default=None,
        description="the engine to use; unset takes what `foveate bench --recommend` measured "
        "here, or else the fastest installed one for the variant",
    )
    device: str = Field(default="cpu", description="the device to run on")
    engine_threads: int = Field(
        default=0,
        ge=0,
        description="threads of one instance's engine; 0 divides the cores among the instances",
    )
    max_batch: Count = Field(default=8, description="the most pictures in a batch")


class Profile(BaseModel):
    """A file of `foveate bench --objective`: the engine of each model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, EngineSettings]


class ModelSettings(EngineSettings):
    """The settings that a model can override, in the table [models.NAME] of the file."""

    instances: Count = Field(
        default=1,
        description="instances of a model, each with batches and weights of its own",
    )
    lanes: int = Field(
        default=0,
        ge=0,
        description="batches that an instance runs at one time under load, each on a share of its "
        "threads; 0 is as many as its engine takes, 1 keeps fewer copies of the weights",
    )
    pin_cores: bool = Field(
        default=False, description="whether each instance runs on cores of its own (Linux)"
    )

    preferred_batches: Counts = Field(
        default=(),
        description="batch sizes that run best: a batch takes the largest that the queue fills",
    )
    max_delay: Seconds = Field(
        default=0.0, description="seconds that an idle engine waits for a batch to fill"
    )
    max_queue: Count = Field(
        default=256,
        description="the bound of a model's queue, in pictures at a request's priority and above",
    )
    priority_queues: Counts = Field(
        default=(),
        description="the bound of the queue of each priority, in pictures, the highest first; "
        "there are as many priorities as numbers",
    )
    default_priority: Count | None = Field(
        default=None,
        description="the priority of requests without one, 1 the highest; unset is the lowest",
    )
    latency_objective: Seconds | None = Field(
        default=None,
        gt=0,
        description="seconds within which 99 of 100 requests should be answered: the server tunes "
        "batch size, delay and queue for it, within the bounds above",
    )


class TransportSettings(BaseModel):
    """The server's transport, and its limits for a client."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    transport: TransportName = Field(
        default="grpcio",
        description="the gRPC server: grpcio, the library's own, or http2, which takes less "
        "processor time and belongs behind a proxy or among trusted clients",
    )
    max_message_bytes: Count = Field(default=24 * _MIB, description="the largest message accepted")
    max_request_bytes: Count = Field(
        default=256 * _MIB, description="the most bytes of pictures in flight"
    )
    max_concurrent_streams: Count = Field(
        default=1024, description="the most calls of one connection at one time; others wait"
    )
    max_connections: Count = Field(
        default=10_000,
        description="the most connections of a process; fewer where its limit of open files "
        "leaves no more",
    )
    max_connection_idle: Seconds = Field(
        default=0.0,
        description="seconds without a call after which a connection is closed; 0 is never",
    )
    max_connection_age: Seconds = Field(
        default=0.0,
        description="seconds, with a jitter of a tenth, after which a client must reconnect, so "
        "that it finds servers that were added; 0 is never",
    )
    max_connection_age_grace: Seconds = Field(
        default=0.0,
        description="seconds for the calls in flight to finish after a connection's maximum age; "
        "0 is no limit",
    )
    keepalive_time: Seconds = Field(
        default=60.0,
        description="seconds without data from a client after which a keepalive PING is sent; "
        "0 is never",
    )
    keepalive_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=20.0,
        description="seconds for the answer to that PING, after which the connection is closed",
    )
    channelz: bool = Field(
        default=False, description="whether clients can read gRPC's own state (channelz)"
    )


class Settings(ModelSettings, TransportSettings, BaseSettings):
    """Every setting of `foveate serve`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    repository: Place = Field(
        description="the folder that holds <model>/<version>/, or its URL: s3://, gs://, az://, "
        "hf://, oci:// or file://, which needs the extra remote"
    )
    repository_mode: Literal["none", "poll", "explicit"] = Field(
        default="none",
        description="what changes the models after the start: only clients, where admin is set "
        "(none), the folder or the URL (poll), or only clients, from a start without models "
        "(explicit)",
    )
    poll_interval: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=15.0,
        description="seconds between two looks at the folder, or the URL, in the mode poll",
    )
    require_signature: Path | None = Field(
        default=None,
        description="a file of public keys (PEM, Ed25519): bundles that none of them signed are "
        "refused; unset loads all; it needs the extra signing",
    )
    version_labels: Annotated[VersionLabels, NoDecode] = Field(
        default_factory=dict,
        description="labels of versions by model, such as stable: MODEL:LABEL=VERSION,... "
        "as a flag, a table of tables in the file",
    )
    address: Address = Field(
        default="127.0.0.1:50051",
        description="where to listen, HOST:PORT; port 0 picks a free one",
    )
    http_address: Address | None = Field(
        default=None,
        description="where to answer the Open Inference Protocol over HTTP, and pictures posted to "
        "be classified, HOST:PORT; unset is nowhere; it needs the extra http",
    )
    admin: bool = Field(
        default=False,
        description="whether clients may load, unload and label models (RepositoryService)",
    )
    workers: Count = Field(
        default=1, description="processes that share the address, each with its own models"
    )

    tls_certificate: Path | None = Field(
        default=None, description="the server's certificate chain (PEM); unset serves without TLS"
    )
    tls_key: Path | None = Field(
        default=None, description="the private key of that certificate (PEM)"
    )
    tls_client_ca: Path | None = Field(
        default=None,
        description="the authorities (PEM) that must have signed a client's certificate; "
        "unset asks clients for none",
    )
    tokens: Path | None = Field(
        default=None, description="a TOML file of bearer tokens and what each may do"
    )
    token: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="a bearer token that may classify; it has no flag",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least severe messages to log"
    )
    log_format: Literal["text", "json"] = Field(default="text", description="the format of the log")
    log_requests: bool = Field(default=False, description="whether every call is logged")
    metrics_address: Address | None = Field(
        default=None,
        description="where to serve metrics, probes and a status page over HTTP, HOST:PORT",
    )
    tracing: bool = Field(
        default=False,
        description="whether to export OpenTelemetry traces, as the OTEL_* variables say",
    )

    image_threads: Count = Field(
        default_factory=count_cores, description="threads that decode and draw pictures"
    )

    stream_window: Count = Field(
        default=32,
        description="the most pictures of one stream, or of one request of the Open Inference "
        "Protocol, that are worked on at one time",
    )

    max_image_bytes: Count = Field(default=16 * _MIB, description="the largest encoded picture")
    max_image_pixels: int = Field(
        default=50_000_000, gt=0, le=MAX_PIXELS, description="the most pixels of a picture"
    )
    max_cam_classes: Count = Field(
        default=16, description="the most classes explained in a request"
    )
    max_picture_side: Count = Field(
        default=1024, description="the longest side in pixels of a heatmap or an overlay"
    )
    max_feature_bytes: Count = Field(
        default=16 * _MIB, description="the most bytes of feature maps in an answer"
    )
    engine_timeout: Seconds = Field(
        default=120.0,
        description="seconds after which a run of an engine counts as hung: its model fails, a "
        "worker is restarted, a single server fails its health check; 0 is no timeout",
    )
    load_timeout: Seconds = Field(
        default=600.0,
        description="seconds after which a load, its warm-up included, is given up: the version "
        "fails, and the one that it would replace keeps serving; 0 is no timeout",
    )
    max_model_bytes: int = Field(
        default=0,
        ge=0,
        description="the most bytes of graphs that each process keeps loaded: a model is loaded by "
        "the first request for it, and those used longest ago are unloaded for it; 0 loads every "
        "model at the start and keeps it",
    )
    cache_bytes: int = Field(
        default=0,
        ge=0,
        description="bytes of answers that each process caches for identical requests; 0 is none",
    )
    deduplicate: bool = Field(
        default=False, description="whether identical requests in flight share one run"
    )
    max_requests: Count = Field(default=1024, description="the most requests in flight")

    shutdown_delay: Seconds = Field(
        default=0.5,
        description="seconds between reporting NOT_SERVING and refusing new requests: for requests "
        "on the network, and for load balancers to notice",
    )
    shutdown_timeout: Seconds = Field(
        default=30.0, description="seconds to drain: to finish the requests in flight when stopping"
    )

    models: dict[str, ModelSettings] = Field(
        default={}, description="the settings that single models override; it has no flag"
    )

    def of(self, model: str) -> ModelSettings:
        """Return the settings of one model: its own, and for the rest the server's."""
        own = self.models.get(model, ModelSettings())
        values = {
            name: getattr(own if name in own.model_fields_set else self, name)
            for name in ModelSettings.model_fields
        }
        return ModelSettings(**values)

    def own_settings(self) -> dict[str, dict[str, Any]]:
        """Return the settings that single models override, by model and name."""
        return {
            name: model.model_dump(mode="json", exclude_unset=True)
            for name, model in self.models.items()
        }

    @model_validator(mode="after")
    def _check_batching(self) -> Self:
        _check_batching("", self)
        for name in self.models:
            _check_batching(f"models.{name}.", self.of(name))
        return self

    @model_validator(mode="after")
    def _check_mode(self) -> Self:
        if self.repository_mode == "explicit" and not self.admin:
            raise ValueError("repository_mode: explicit needs admin, as only clients load models")
        if self.repository_mode == "explicit" and self.max_model_bytes:
            raise ValueError(
                "max_model_bytes: requests load models with it, and in the repository_mode "
                "explicit only clients with admin do"
            )
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: only one is given")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca: it needs tls_certificate and tls_key")
        return self

    def to_toml(self) -> str:
        """Return the settings as the text of a TOML file, without the secrets."""
        lines, values = [], self.model_dump(mode="json")
        for name in setting_names():
            value = values[name]
            lines.append(f"# {_description(name)}")
            if is_secret(name):
                lines.append(f"# {name} = {'(not set)' if value is None else '(secret)'}")
                continue
            lines.append(f"# {name} =" if value is None else f"{name} = {_toml(value)}")
        for model, own in self.own_settings().items():
            lines += ["", f"[models.{json.dumps(model)}]"]
            lines += [f"{name} = {_toml(value)}" for name, value in own.items()]
        return "\n".join(lines) + "\n"

    def shown(self) -> dict[str, str]:
        """Return every setting as text for the status page, without the secrets."""
        values = {name: getattr(self, name) for name in setting_names()}
        values["models"] = json.dumps(self.own_settings())
        return {
            name: "" if value is None else str(value)  # a SecretStr shows as stars
            for name, value in values.items()
        }


def setting_names() -> list[str]:
    """Return the names of the settings without `models`; those that models override come last."""
    names = [name for name in Settings.model_fields if name != "models"]
    return sorted(
        names,
        key=lambda name: (
            name in ModelSettings.model_fields,
            name in TransportSettings.model_fields,
        ),
    )


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    # JSON writes the others as TOML does.
    return json.dumps(value)


def is_secret(name: str) -> bool:
    """Return whether a setting's value is secret."""
    return SecretStr in get_args(Settings.model_fields[name].annotation)


def first_error(error: ValidationError) -> tuple[str, ErrorDetails]:
    """Return the path of the first bad field, with dots, and the details of its error."""
    first = error.errors(include_url=False)[0]
    return ".".join(str(part) for part in first["loc"]), first


def load_settings(
    flags: Mapping[str, str | bool], file: Path | None = None, profile: Path | None = None
) -> Settings:
    """Read the settings: `flags` win over the environment, which wins over the files.

    `file` is a TOML file of settings and `profile` one of `Profile`, which wins
    over the other for the models that it names. Environment variables are
    called FOVEATE_SERVE_ and the setting's name in upper case. Raises
    SettingsError, also for a name that is no setting.
    """
    _refuse_unknown_variables()
    layers = {} if file is None else _read(file)
    above = {**EnvSettingsSource(Settings)(), **flags}
    if profile is not None:
        _apply_profile(layers, _read_profile(profile), above)
    layers.update(above)
    try:
        return Settings(**layers)
    except ValidationError as error:
        name, first = first_error(error)
        if first["type"] == "extra_forbidden":
            raise SettingsError(f"{name}: there is no such setting") from error
        if first["type"] == "missing":
            raise SettingsError(f"{name}: must be given ({_description(name)})") from error
        if not name:
            raise SettingsError(first["msg"].removeprefix("Value error, ")) from None
        # The validation error holds its input, and so would the traceback.
        if is_secret(str(first["loc"][0])):
            raise SettingsError(f"{name}: {first['msg']}") from None
        if name == "repository" and isinstance(
            error.errors()[0].get("ctx", {}).get("error"), LocationError
        ):
            # Its message names the URL, without the credentials that may be in it.
            raise SettingsError(f"{name}: {first['msg'].removeprefix('Value error, ')}") from None
        raise SettingsError(f"{name}: {first['input']!r}: {first['msg']}") from error


def _apply_profile(layers: dict[str, Any], profile: Profile, above: dict[str, Any]) -> None:
    """Add the profile's settings to `layers`, except those set in `above`."""
    models, single = layers.get("models", {}), above.get("models", {})
    if not (_are_tables(models) and _are_tables(single)):
        return  # the validation of all settings refuses it
    models = dict(models)
    above.pop("models", None)
    # Without this, a model's own settings would win over flags and environment.
    for name, engine in profile.models.items():
        values = engine.model_dump(exclude_unset=True).items()
        models[name] = {
            **models.get(name, {}),
            **{setting: value for setting, value in values if setting not in above},
        }
    for name, own in single.items():
        models[name] = {**models.get(name, {}), **own}
    layers["models"] = models


def _are_tables(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(own, Mapping) for own in value.values())


def _read_profile(file: Path) -> Profile:
    try:
        return Profile.model_validate(_read(file))
    except ValidationError as error:
        name, first = first_error(error)
        if first["type"] == "extra_forbidden":
            raise SettingsError(f"{file}: {name}: there is no such setting in a profile") from error
        raise SettingsError(f"{file}: {name}: {first['msg']}") from error


def _check_batching(owner: str, values: ModelSettings) -> None:
    largest = max(values.preferred_batches, default=1)
    if largest > values.max_batch:
        raise ValueError(
            f"{owner}preferred_batches: {largest}; the limit is {values.max_batch}, max_batch"
        )
    levels = len(values.priority_queues) or 1
    if values.default_priority is not None and values.default_priority > levels:
        raise ValueError(
            f"{owner}default_priority: {values.default_priority}; "
            f"the limit is {levels}, the number of priorities"
        )
    if values.pin_cores and not CAN_PIN:
        raise ValueError(f"{owner}pin_cores: this system cannot pin a thread to cores")


def _description(name: str) -> str:
    return Settings.model_fields[name].description or name


def _refuse_unknown_variables() -> None:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for variable in os.environ:
        if variable.startswith(ENV_PREFIX) and variable not in known:
            raise SettingsError(f"{variable}: there is no such setting")


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: {error}") from error
