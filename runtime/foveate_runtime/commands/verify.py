"""`foveate verify`: does a bundle still answer as torch did when it was exported?"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite

from foveate_runtime.backends.base import BackendError
from foveate_runtime.backends.registry import BACKENDS, create_runner
from foveate_runtime.bundle.bundle import Bundle, BundleError
from foveate_runtime.bundle.golden import Golden, open_golden, refusals
from foveate_runtime.console import DONE, FAILED, say
from foveate_runtime.options import BundleOptions, option, parse

PROG = "foveate verify"

DESCRIPTION = """\
Checks the digest of every file of a bundle, then runs each variant on the
pictures kept in it and compares every output with torch's answers, which are
kept in it too. Needs no torch."""
EPILOG = "example: foveate verify models/resnet18/1"


@dataclass(frozen=True, kw_only=True)
class Options(BundleOptions):
    """The options of `foveate verify`."""

    variant: str | None = option("default: all")
    backend: str | None = option("default: the first installed", choices=list(BACKENDS))
    device: str = option("such as cuda:0; default: cpu", default="cpu")
    json: bool = option("print every comparison as JSON")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One output of one variant on one backend; the error is relative, by `measure`."""

    variant: str
    backend: str
    output: str
    measure: str
    error: float
    limit: float
    accepted: bool


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    options = parse(Options, arguments, prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    try:
        checks = verify(
            Bundle.open(options.bundle), options.variant, options.backend, options.device
        )
    except (BundleError, BackendError) as error:
        return say(PROG, error, FAILED)
    if options.json:
        print(json.dumps([_as_json(check) for check in checks], indent=2))
    else:
        for check in checks:
            print(_line(check))
    return DONE if all(check.accepted for check in checks) else FAILED


def verify(
    bundle: Bundle, variant: str | None, backend: str | None, device: str = "cpu"
) -> list[Check]:
    """Compare every output of a variant, or of all of them, with the golden answers.

    `backend` None takes the preferred one that is installed. Raises BundleError
    where the bundle has no golden answers, and BackendError.
    """
    golden = open_golden(bundle)
    if golden is None:
        raise BundleError("the bundle holds no golden answers to compare with")
    names = [entry.name for entry in bundle.manifest.variants] if variant is None else [variant]
    return [check for name in names for check in _checks(bundle, golden, name, backend, device)]


def _checks(
    bundle: Bundle, golden: Golden, variant: str, backend: str | None, device: str
) -> list[Check]:
    with create_runner(bundle, variant=variant, backend=backend, device=device) as runner:
        tolerances = bundle.manifest.variant(variant).tolerances
        if tolerances is None:
            raise BundleError(f"the manifest gives the variant {variant!r} no tolerances")
        errors = golden.errors(runner.run, tolerances.measure)
        refused = refusals(errors, tolerances)
        return [
            Check(
                variant=variant,
                backend=runner.backend,
                output=output,
                measure=tolerances.measure,
                error=error,
                limit=tolerances.limit(output),
                accepted=output not in refused,
            )
            for output, error in errors.items()
        ]


def _as_json(check: Check) -> dict[str, object]:
    # JSON has no infinity.
    return asdict(check) | {"error": check.error if isfinite(check.error) else None}


def _line(check: Check) -> str:
    verdict = "ok" if check.accepted else "REFUSED"
    return (
        f"{verdict:<8}{check.variant} on {check.backend}: {check.output} differs by "
        f"{check.error:.2g} ({check.measure}), {check.limit:.2g} is accepted"
    )
