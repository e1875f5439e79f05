"""Every rule against PyTorch's automatic differentiation, on random tensors of odd shapes.

The gradients of other classes in each picture are pulled back through an operator,
and autograd does the same.
"""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate_export.anatomy.taps import Tap, tapped
from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.vjp.operation import operator_name
from foveate_export.graph.vjp.rules import RULES
from foveate_export.graph.vjp.traced import trace

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

PICTURES, CHANNELS, HEIGHT, WIDTH = 2, 6, 7, 5
CLASSES = torch.tensor([[0, 4, 2], [3, 3, 1]])


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """Weights beside a function: as attributes, they are constants of the trace."""

    def __init__(self, function, **weights: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in weights.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def heads(x: Tensor) -> Tensor:
    """[N, 2, T, 3], which a transformer calls heads."""
    return tokens(x).reshape(x.shape[0], -1, 2, 3).transpose(1, 2)


def timm_attention(x: Tensor) -> Tensor:
    q, k, v = (
        torch.cat([tokens(x), tokens(x).sin(), tokens(x).cos()], 2)
        .reshape(x.shape[0], -1, 3, 2, 3)
        .permute(2, 0, 3, 1, 4)
        .unbind(0)
    )
    weights = ((q * 3**-0.5) @ k.transpose(-2, -1)).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def masked(mask: Tensor):
    return Layer(
        lambda self, x: functional.scaled_dot_product_attention(
            heads(x), heads(x).tanh(), heads(x) * 2, attn_mask=self.mask
        ),
        mask=mask,
    )


def apart(x: Tensor) -> Tensor:
    """Values above 0.1, for what is not defined or not smooth below."""
    return x.abs() + 0.1


CELLS = HEIGHT * WIDTH

CASES = {
    "layer_norm": nn.LayerNorm([CHANNELS, HEIGHT, WIDTH], eps=0.1),
    "layer_norm without weights": lambda x: functional.layer_norm(tokens(x), (CHANNELS,)),
    "layer_norm of tokens": lambda x: functional.layer_norm(
        tokens(x), (CHANNELS,), torch.linspace(-1, 2, CHANNELS), torch.ones(CHANNELS)
    ),
    "group_norm": nn.GroupNorm(3, CHANNELS),
    "group_norm with weights": lambda x: functional.group_norm(
        x, 2, torch.linspace(-1, 2, CHANNELS), torch.ones(CHANNELS), 0.1
    ),
    "rms_norm": lambda x: functional.rms_norm(
        tokens(x), (CHANNELS,), torch.linspace(-1, 2, CHANNELS), 0.1
    ),
    "rms_norm with its own eps": lambda x: functional.rms_norm(tokens(x), (CHANNELS,)),
    "batch_norm": nn.BatchNorm2d(CHANNELS),
    "relu": nn.ReLU(),
    "relu6": lambda x: functional.relu6(3 * x),
    "hardsigmoid": lambda x: functional.hardsigmoid(3 * x),
    "hardswish": lambda x: functional.hardswish(3 * x),
    "hardtanh": nn.Hardtanh(-0.5, 0.7),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "gelu": nn.GELU(),
    "gelu tanh": nn.GELU("tanh"),
    "elu": nn.ELU(0.7),
    "selu": nn.SELU(),
    "prelu": nn.PReLU(),
    "prelu by channel": nn.PReLU(CHANNELS),
    "leaky_relu": nn.LeakyReLU(0.2),
    "softplus": nn.Softplus(3, 1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "log": lambda x: apart(x).log(),
    "sqrt": lambda x: apart(x).sqrt(),
    "rsqrt": lambda x: apart(x).rsqrt(),
    "reciprocal": lambda x: apart(x).reciprocal(),
    "erf": torch.erf,
    "sin and cos": lambda x: x.sin() * x.cos(),
    "square": torch.square,
    "neg": torch.neg,
    "detach": lambda x: x * x.detach().exp(),
    "pow": lambda x: apart(x) ** 3,
    "pow of a tensor": Layer(lambda self, x: apart(x) ** self.power, power=torch.tensor([1.5])),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp_min": lambda x: x.clamp(min=0.3),
    "clamp_max": lambda x: torch.clamp_max(x, 0.3),
    "add and sub": lambda x: torch.add(x, x.mean(1, keepdim=True), alpha=2) - x.exp(),
    "rsub": lambda x: torch.rsub(x, x.exp(), alpha=2),
    "rsub of a number": lambda x: 1 - x,
    "mul": lambda x: x * x.mean((2, 3), keepdim=True) * torch.linspace(0, 1, WIDTH),
    "mul of fewer axes": lambda x: x.flatten(0, 1) * x[0, 0].detach(),
    "div": lambda x: x / apart(x).mean(1, keepdim=True),
    "where": lambda x: torch.where(x > 0.2, x.exp(), x * x),
    "maximum": lambda x: torch.maximum(x, 0.5 * x.flip(3)),
    "minimum": lambda x: torch.minimum(x, x.mean(1, keepdim=True)),
    "mean": lambda x: x.mean((1, 3)),
    "mean of one axis": lambda x: x.mean(-2, keepdim=True),
    "sum": lambda x: x.sum((-1, 1)),
    "var": lambda x: x.var((2, 3)),
    "var without correction": lambda x: x.var(1, correction=0, keepdim=True),
    "std": lambda x: x.std((1, 2)),
    "amax": lambda x: x.amax((1, -1)),
    "amin": lambda x: x.amin(2, keepdim=True),
    "max": lambda x: x.max(2).values,
    "min": lambda x: x.min(-1, keepdim=True)[0],
    "norm": lambda x: torch.linalg.vector_norm(x, dim=(1, 3)),
    "norm of order 1": lambda x: x.norm(p=1, dim=1),
    "l2 normalisation": lambda x: functional.normalize(x.mean((2, 3))),
    "softmax": lambda x: x.softmax(-1),
    "softmax over space": lambda x: x.flatten(2).softmax(2),
    "log_softmax": lambda x: x.log_softmax(1),
    "linear": nn.Linear(WIDTH, 4),
    "matmul": timm_attention,
    "matmul with weights": Layer(lambda self, x: x @ self.weight, weight=random(WIDTH, 4)),
    "matmul from the left": Layer(lambda self, x: self.weight @ x, weight=random(4, HEIGHT)),
    "bmm": lambda x: torch.bmm(x.flatten(2), tokens(x)),
    "baddbmm": lambda x: torch.baddbmm(
        x[:, :, 0, :1], x.flatten(2), tokens(x).sin(), beta=0.5, alpha=2
    ),
    "attention": lambda x: functional.scaled_dot_product_attention(
        heads(x), heads(x).tanh(), heads(x) * 2
    ),
    "attention with a mask": masked(torch.linspace(0, 1, CELLS * CELLS).reshape(CELLS, CELLS)),
    "attention with a mask of booleans": masked(torch.ones(CELLS, CELLS).tril() > 0),
    "attention of one query": lambda x: functional.scaled_dot_product_attention(
        heads(x)[:, :, :1], heads(x), heads(x), scale=0.3
    ),
    "conv1d": lambda x: functional.conv1d(
        x.flatten(2), random(4, CHANNELS, 3), stride=2, padding=1
    ),
    "conv1d of channels": lambda x: functional.conv1d(
        x.mean((2, 3)).unsqueeze(1), random(1, 1, 3), padding=1
    ),
    "conv2d": nn.Conv2d(CHANNELS, 4, 3, stride=(2, 3), padding=(1, 0)),
    "conv2d same": nn.Conv2d(CHANNELS, CHANNELS, (4, 3), padding="same", groups=3, dilation=(1, 2)),
    "conv2d valid": nn.Conv2d(CHANNELS, 4, (2, 3), padding="valid"),
    "conv_transpose1d": lambda x: functional.conv_transpose1d(
        x.flatten(2), random(CHANNELS, 2, 3), stride=2, padding=1, groups=2
    ),
    "conv_transpose2d": nn.ConvTranspose2d(CHANNELS, 4, 3, (2, 3), (1, 0), (1, 2), 2),
    "conv_transpose2d dilated": nn.ConvTranspose2d(CHANNELS, 4, 2, 1, 0, 2, dilation=3),
    "upsample_nearest2d": nn.Upsample(scale_factor=2),
    "upsample_nearest2d by a size": nn.Upsample((9, 12)),
    "upsample_nearest2d to fewer": lambda x: functional.interpolate(x, (4, 3)),
    "upsample_nearest2d by a fraction": nn.Upsample(scale_factor=(1.7, 0.6)),
    "upsample_bilinear2d": nn.Upsample(scale_factor=2, mode="bilinear"),
    "upsample_bilinear2d by a size": nn.Upsample((9, 3), mode="bilinear"),
    "upsample_bilinear2d by a fraction": nn.Upsample(scale_factor=(1.7, 0.6), mode="bilinear"),
    "upsample_bilinear2d of corners": nn.Upsample((9, 1), mode="bilinear", align_corners=True),
    "avg_pool2d": nn.AvgPool2d(3, 2, 1),
    "avg_pool2d ceil": nn.AvgPool2d(2, 2, ceil_mode=True),
    "avg_pool2d ceil with padding": nn.AvgPool2d(3, 3, 1, ceil_mode=True),
    "avg_pool2d ceil past the padding": nn.AvgPool2d(5, 2, 2, ceil_mode=True),
    "avg_pool2d without the padding": nn.AvgPool2d(3, 2, 1, True, False),
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d((3, 2)),
    "max_pool2d": nn.MaxPool2d(3, 2, 1),
    "max_pool2d ceil": nn.MaxPool2d(2, 2, ceil_mode=True),
    "max_pool2d ceil with padding": nn.MaxPool2d(3, 3, 1, ceil_mode=True),
    "max_pool2d dilated": nn.MaxPool2d(2, 1, 0, 2),
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d(1),
    "adaptive_max_pool2d of windows": lambda x: functional.adaptive_max_pool2d(x[:, :, :6], (3, 1)),
    "concat pool": lambda x: torch.cat(
        [functional.adaptive_max_pool2d(x, 1), functional.adaptive_avg_pool2d(x, 1)], 1
    ),
    "select": lambda x: x[:, 2] * x.select(3, -1).unsqueeze(-1)[:, 3],
    "slice": lambda x: x[:, 1:4, -3:],
    "slice with a step": lambda x: x[:, :, 1::2, ::3] * x[:, :, :6:2, 1::3].sum((1, 2, 3), True),
    "index_select": Layer(
        lambda self, x: x.index_select(1, self.index), index=torch.tensor([4, 0, 4])
    ),
    "index": Layer(lambda self, x: x[:, :, self.index], index=torch.tensor([-1, 2, 2])),
    "expand": lambda x: x.mean(1, keepdim=True).expand(-1, 4, -1, -1) * x[:, :4].exp(),
    "repeat": lambda x: x.repeat(1, 2, 1, 1).exp(),
    "cat": lambda x: torch.cat([x, x.exp()], -3),
    "stack": lambda x: torch.stack([x, x.exp(), x.sin()], -2),
    "split": lambda x: x.split(4, 1)[1].exp(),
    "chunk": lambda x: x.chunk(3, 1)[0] * x.chunk(3, 1)[2],
    "unbind": lambda x: x.unbind(3)[1] * x.unbind(3)[3],
    "roll": lambda x: x.roll((1, -2), (2, 3)).exp(),
    "flip": lambda x: x.flip(2) * x,
    "pad": lambda x: functional.pad(x, (1, 2, 0, 3), value=1.0),
    "pad of channels": lambda x: functional.pad(x, (0, 0, 0, 0, 2, 1)),
    "transposes": lambda x: x.transpose(1, -1).permute(0, 2, 3, 1).mT,
    "windows of attention": lambda x: (
        x[:, :, :6, :4].reshape(-1, CHANNELS, 2, 3, 2, 2).permute(0, 2, 4, 3, 5, 1)
        .reshape(-1, 6, CHANNELS).softmax(1).reshape(-1, 2, 2, 6, CHANNELS)
    ),
    "dtype": lambda x: x.double().exp().to(torch.float32),
    "squeeze": lambda x: x.mean(1, keepdim=True).squeeze(1),
    "dropout": nn.Sequential(nn.Dropout(), nn.Dropout2d()),
    "split by sizes": lambda x: x.split((2, 4), 1)[0].exp(),
    "type_as": lambda x: x.type_as(x.double()).exp(),
    "mm": Layer(lambda self, x: torch.mm(x.flatten(1), self.weight), weight=random(210, 3)),
    "addmm": Layer(
        lambda self, x: torch.addmm(torch.ones(3), x.flatten(1), self.weight, alpha=0.5),
        weight=random(210, 3),
    ),
    "t": lambda x: x.flatten(0, 2).t() ** 2,
    "constant_pad_nd": lambda x: torch.constant_pad_nd(x, (1, -2), 1.0),
    "log1p and expm1": lambda x: apart(x).log1p() + x.expm1(),
}  # fmt: skip
"""What has a rule."""

DECOMPOSED = {
    "instance_norm": nn.InstanceNorm2d(CHANNELS),
    "celu": nn.CELU(0.7),
    "softsign": nn.Softsign(),
    "logsigmoid": nn.LogSigmoid(),
    "glu": nn.GLU(1),
    "threshold": nn.Threshold(0.1, 2.0),
    "masked_fill": lambda x: x.masked_fill(x > 0.2, 3.0),
    "einsum": lambda x: torch.einsum("nchw,ndhw->ncd", x, x.sin()),
    "movedim": lambda x: x.movedim(1, -1).exp(),
}
"""What PyTorch makes of operators that have one."""


class Branches(nn.Module):
    """Every function of a map of its own, and something of all its values in five logits.

    One network for all: a trace takes a second, however short it is.
    """

    def __init__(self, functions) -> None:
        super().__init__()
        self.taps = nn.ModuleList(nn.Identity() for _ in functions)
        self.functions = nn.ModuleList(
            each if isinstance(each, nn.Module) else Layer(lambda self, x, each=each: each(x))
            for each in functions
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(x.shape[0], 5)
        for tap, function in zip(self.taps, self.functions, strict=True):
            values = function(tap(x.clone())).reshape(x.shape[0], -1).float()
            weights = torch.linspace(-1, 1, values.shape[1] * 5).sin().reshape(5, -1)
            logits = logits + (values @ weights.T) ** 2
        return logits


def compared(cases) -> dict[str, tuple[object, Tensor]]:
    """Return, by case, how to pull its gradient back, and autograd's, [K, N, C, h, w]."""
    torch.manual_seed(0)
    module = Branches(cases.values()).eval()
    x = random(PICTURES, CHANNELS, HEIGHT, WIDTH)
    taps = [Tap(f"taps.{index}") for index in range(len(cases))]
    with torch.no_grad():
        passed = trace(module, x, taps, start=taps)(x)
    with tapped(module, taps) as tensors:
        logits = module(x.clone().requires_grad_())
    scores = [logits.gather(1, column[:, None]).sum() for column in CLASSES.T]
    inputs = [tensors[tap] for tap in taps]
    by_class = [torch.autograd.grad(score, inputs, retain_graph=True) for score in scores]
    return {
        name: (partial(passed.gradient, tap, CLASSES), torch.stack(expected))
        for name, tap, expected in zip(cases, taps, zip(*by_class, strict=True), strict=True)
    }


@pytest.fixture(scope="module")
def gradients() -> dict[str, tuple[object, Tensor]]:
    return compared(CASES)


@pytest.fixture(scope="module")
def decomposed() -> dict[str, tuple[object, Tensor]]:
    return compared(DECOMPOSED)


def check(pull, expected: Tensor) -> None:
    with torch.no_grad():
        got = pull()
    largest = float(expected.abs().max())
    assert largest > 0
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * largest)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_equals_autograd(name: str, gradients) -> None:
    check(*gradients[name])


@pytest.mark.parametrize("name", DECOMPOSED)
def test_an_operator_without_a_rule_is_taken_apart(name: str, decomposed) -> None:
    assert name not in RULES
    check(*decomposed[name])


def test_a_network_of_known_operators_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = []
    run_decompositions = torch.export.ExportedProgram.run_decompositions

    def counted(program, table):
        rounds.append(table)
        return run_decompositions(program, table)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", counted)
    # The number of pictures, on the way to a view, is no operator for a gradient to pass.
    layer = Layer(lambda _, x: x.relu().view(x.shape[0], -1))
    module = nn.Sequential(nn.Identity(), layer, nn.Linear(CHANNELS * HEIGHT * WIDTH, 3)).eval()
    start = [Tap("0")]
    traced = trace(module, random(PICTURES, CHANNELS, HEIGHT, WIDTH), start, start)
    sizes = [node for node in traced._graph.graph.nodes if "sym_size" in operator_name(node)]
    assert sizes
    assert rounds == [{}]


def test_every_rule_is_tried(gradients) -> None:
    graph = gradients["relu"][0].func.__self__.graph
    tried = {operator_name(node) for node in graph.nodes if node.op == "call_function"}
    # Other names of the same operator, which another version of PyTorch may trace.
    aliases = {
        *("_softmax", "_log_softmax", "_native_batch_norm_legit", "batch_norm", "chunk"),
        *("_unsafe_view", "reshape", "flatten", "unflatten", "contiguous", "to", "alias"),
        *("dropout", "feature_dropout", "view"),
    }
    assert RULES.keys() - tried <= aliases


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.sum() * x, "sum in function cannot be differentiated: it goes over all axes"),
        (lambda x: x.sort(1).values, "there is no rule for this operator"),
    ],
)
def test_what_has_no_rule_is_named(function, reason: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tap = nn.Identity()
            self.function = Layer(lambda self, x: function(x))

        def forward(self, x: Tensor) -> Tensor:
            return self.function(self.tap(x)).flatten(1)[:, :5]

    x = random(PICTURES, CHANNELS, HEIGHT, WIDTH)
    passed = trace(Net().eval(), x, [Tap("tap")], start=[Tap("tap")])(x)
    with pytest.raises(UnsupportedHeadError, match=reason):
        passed.gradient(Tap("tap"), CLASSES)
