"""The precisions of a bundle: fp32 is exported, the others are made of its graph.

`fp16` is `half`, `int8` and `int8-symmetric` are `quantise`; what they are made
with is `calibration`, and whether they are good enough is for `acceptance`.
"""

from types import MappingProxyType

from foveate_export.publish.variants.quantise import FITS, Scheme
from foveate_runtime.bundle.manifest import Quantisation, VariantEntry

FP32 = "fp32"
FP16 = "fp16"

INT8 = MappingProxyType[str, Scheme]({"int8": "asymmetric", "int8-symmetric": "symmetric"})
"""The int8 variants and their schemes: the first for CPUs, the second for TensorRT."""

VARIANTS = (FP32, FP16, *INT8)
"""The names of all variants."""


def file_name(variant: str) -> str:
    """Return the name that a variant's graph has in the bundle."""
    return "model.onnx" if variant == FP32 else f"model.{variant}.onnx"


def unmeasured(variant: str) -> VariantEntry:
    """Return of a variant what a runner needs to know of it before anything is measured."""
    quantisation = None
    if variant in INT8:
        quantisation = Quantisation.model_construct(pairs_fit=FITS[INT8[variant]])
    return VariantEntry.model_construct(
        name=variant, file=file_name(variant), quantisation=quantisation
    )
