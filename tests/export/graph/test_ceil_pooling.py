"""Poolings that round up, in ONNX Runtime against torch."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from foveate_export.graph.ceil_pooling import ExplicitCeilPooling

POOLINGS = [
    pooling
    for size, stride, padding in [(3, 3, 1), (5, 2, 2), (2, 2, 0), (2, 3, 0), (3, 2, 1)]
    for pooling in (
        nn.MaxPool2d(size, stride, padding, ceil_mode=True),
        nn.AvgPool2d(size, stride, padding, ceil_mode=True),
        nn.AvgPool2d(size, stride, padding, ceil_mode=True, count_include_pad=False),
    )
] + [nn.MaxPool2d(3, 2, 1, dilation=2, ceil_mode=True), nn.MaxPool2d(3, 2)]


class All(nn.Module):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [pooling(x) for pooling in POOLINGS]


def test_poolings_round_up_as_torch_does(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 32, 23, generator=torch.Generator().manual_seed(0))
    program = torch.onnx.export(All().eval(), (x,), dynamo=True, verbose=False)
    ExplicitCeilPooling()(program.model)
    path = tmp_path / "poolings.onnx"
    program.save(path)
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for pooling, values in zip(POOLINGS, got, strict=True):
        expected = pooling(x).numpy()
        assert values.shape == expected.shape, pooling
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6, err_msg=str(pooling))
