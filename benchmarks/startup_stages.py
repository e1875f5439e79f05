"""What `foveate serve` does before it is ready, stage by stage, in a fresh process.

python -m benchmarks.startup_stages BUNDLE STARTED

Prints the seconds of each stage as a line of JSON. STARTED is the time of
`time.monotonic` at which the process was started. Everything but the standard
library is imported within its stage.
"""

import json
import sys
import time
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Go through the stages."""
    last = float(sys.argv[2])
    seconds: dict[str, float] = {}

    def ended(stage: str) -> None:
        nonlocal last
        now = time.monotonic()
        seconds[stage], last = now - last, now

    ended("the interpreter")
    import_module("foveate_client.cli")
    settings = import_module("foveate_serve.cli").Settings(repository=Path())
    ended("the server's imports")
    bundle = import_module("foveate_runtime.bundle.bundle").Bundle.open(Path(sys.argv[1]))
    ended("the bundle read, and its SHA-256 compared")
    import_module("onnxruntime")
    ended("ONNX Runtime's import")
    create_runner = import_module("foveate_runtime.backends.registry").create_runner
    runner = create_runner(bundle, variant="fp32", backend="onnxruntime")
    ended("the session for requests without maps")
    policy = import_module("foveate_serve.assembly").batch_policy(settings)
    warmup = import_module("foveate_serve.repository.warmup")
    lanes = policy.lanes_of(runner)
    sizes = warmup.batch_sizes(policy, lanes)
    warmup.warm_up(runner, sizes, lanes, watched=bool(settings.engine_timeout))
    ended("the other sessions, and the runs that warm up")
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
