"""The protocol's messages on a server, its models, their configuration and statistics."""

from collections.abc import Iterable
from importlib.metadata import version

from foveate.inference import open_inference_pb2 as pb
from foveate_runtime.backends.base import TensorSpec
from foveate_runtime.bundle.manifest import CLASS_IDS_INPUT, IMAGE_INPUT, LABELS_FILE, LOGITS_OUTPUT
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.engine.trust import trust_outputs
from foveate_serve.repository.loaded import LoadedModel
from foveate_serve.repository.versions import ModelStatus, State
from foveate_serve.rpc.oip.tensors import DATATYPES
from foveate_serve.statistics import Histogram, ModelStatistics

EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
"""The extensions of the protocol that this server supports."""

_PLATFORMS = {
    "onnxruntime": "onnxruntime_onnx",
    "tensorrt": "tensorrt_plan",
    "torch": "pytorch_libtorch",
}
"""The protocol's platform of a backend; any other backend is its own platform."""

_STATES = {
    State.LOADING: "LOADING",
    State.READY: "READY",
    State.UNLOADING: "UNLOADING",
    State.UNLOADED: "UNAVAILABLE",
    State.FAILED: "UNAVAILABLE",
    # Clients that wait for READY must not wait for the load that their request begins.
    State.ON_DEMAND: "READY",
}

_REASONS = {State.UNLOADED: "unloaded", State.ON_DEMAND: "loaded by the first request for it"}


def server_metadata() -> pb.ServerMetadataResponse:
    """Return the server's name, version and extensions."""
    return pb.ServerMetadataResponse(
        name="foveate", version=version("foveate-serve"), extensions=EXTENSIONS
    )


def model_metadata(model: LoadedModel, versions: Iterable[str]) -> pb.ModelMetadataResponse:
    """Describe the tensors of a model; `versions` are those that serve."""
    runner = model.runner
    return pb.ModelMetadataResponse(
        name=model.bundle.manifest.name,
        versions=versions,
        platform=_platform(model),
        inputs=[_tensor(name, spec) for name, spec in runner.inputs.items()],
        outputs=[_tensor(name, spec) for name, spec in _outputs(model).items()],
    )


def model_config(model: LoadedModel, *, max_images: int) -> pb.ModelConfigResponse:
    """Describe how a model runs. A request has at most `max_images` pictures."""
    runner, batcher = model.runner, model.batcher
    on_gpu = runner.device != "cpu"
    return pb.ModelConfigResponse(
        config=pb.ModelConfig(
            name=model.bundle.manifest.name,
            platform=_platform(model),
            backend=runner.backend,
            max_batch_size=min(batcher.bounds.max_batch, max_images),
            input=[
                pb.ModelInput(
                    name=name,
                    data_type=_data_type(spec),
                    format=pb.ModelInput.FORMAT_NHWC
                    if name == IMAGE_INPUT
                    else pb.ModelInput.FORMAT_NONE,
                    dims=_shape(spec)[1:],
                    optional=name == CLASS_IDS_INPUT,
                )
                for name, spec in runner.inputs.items()
            ],
            output=[
                pb.ModelOutput(
                    name=name,
                    data_type=_data_type(spec),
                    dims=_shape(spec)[1:],
                    label_filename=LABELS_FILE if name == LOGITS_OUTPUT else "",
                )
                for name, spec in _outputs(model).items()
            ],
            instance_group=[
                pb.ModelInstanceGroup(
                    name=runner.variant,
                    count=len(model.runners),
                    kind=pb.ModelInstanceGroup.KIND_GPU
                    if on_gpu
                    else pb.ModelInstanceGroup.KIND_CPU,
                )
            ],
            dynamic_batching=_dynamic_batching(batcher.policy),
            parameters={"scores": pb.ModelParameter(string_value=model.bundle.manifest.scores)},
        )
    )


def _outputs(model: LoadedModel) -> dict[str, TensorSpec]:
    return {**model.runner.outputs, **trust_outputs(model.bundle.manifest)}


def _dynamic_batching(policy: BatchPolicy) -> pb.ModelDynamicBatching:
    levels = range(policy.priorities)
    # The protocol has no other field for the size that the Tuner chose.
    found = () if policy.objective is None else (policy.max_batch,)
    return pb.ModelDynamicBatching(
        preferred_batch_size=policy.preferred_sizes or found,
        max_queue_delay_microseconds=round(policy.max_delay * 1e6),
        # A single priority is the protocol's 0.
        priority_levels=len(policy.priority_queues),
        default_priority_level=policy.level(0) + 1 if policy.priority_queues else 0,
        default_queue_policy=_queue_policy(policy.max_queue),
        priority_queue_policy={level + 1: _queue_policy(policy.bound(level)) for level in levels}
        if policy.priority_queues
        else {},
    )


def _queue_policy(size: int) -> pb.ModelQueuePolicy:
    # The parameter "timeout" of a request is its deadline, after which it does not run.
    return pb.ModelQueuePolicy(
        timeout_action=pb.ModelQueuePolicy.REJECT,
        allow_timeout_override=True,
        max_queue_size=size,
    )


def model_statistics(name: str, number: str, statistics: ModelStatistics) -> pb.ModelStatistics:
    """Write the statistics of a version."""
    return pb.ModelStatistics(
        name=name,
        version=number,
        last_inference=round((statistics.last_inference or 0.0) * 1e3),
        inference_count=statistics.inferences,
        execution_count=statistics.executions,
        inference_stats=pb.InferStatistics(
            success=_total(statistics.success),
            fail=_total(statistics.failure),
            queue=_total(statistics.queue),
            compute_input=_total(statistics.decode),
            compute_infer=_total(statistics.infer),
            compute_output=_total(statistics.encode),
            cache_hit=_total(statistics.cache_hit),
            cache_miss=_total(statistics.cache_miss),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=_duration(batches.count, batches.gather),
                compute_infer=_duration(batches.count, batches.infer),
                compute_output=_duration(batches.count, batches.split),
            )
            for size, batches in sorted(statistics.batches.items())
        ],
    )


def repository_index(models: Iterable[ModelStatus], *, ready: bool) -> pb.RepositoryIndexResponse:
    """List the versions of the models; with `ready` only those that serve."""
    return pb.RepositoryIndexResponse(
        models=[
            pb.RepositoryIndexResponse.ModelIndex(
                name=model.name,
                version=str(version.version),
                state=_STATES[version.state],
                reason=version.reason or _REASONS.get(version.state, ""),
            )
            for model in models
            for version in model.versions
            if version.state.answers or not ready
        ]
    )


def _platform(model: LoadedModel) -> str:
    return _PLATFORMS.get(model.runner.backend, model.runner.backend)


def _tensor(name: str, spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=name, datatype=DATATYPES[spec.dtype], shape=_shape(spec)
    )


def _shape(spec: TensorSpec) -> list[int]:
    return [-1 if dimension is None else dimension for dimension in spec.shape]


def _data_type(spec: TensorSpec) -> pb.DataType.ValueType:
    return pb.DataType.Value(f"TYPE_{DATATYPES[spec.dtype]}")


def _total(durations: Histogram) -> pb.StatisticDuration:
    return _duration(durations.count, durations.seconds)


def _duration(count: int, seconds: float) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=round(seconds * 1e9))
