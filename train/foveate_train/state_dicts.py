"""State dicts, found in the files that training scripts leave.

A script saves more than a network: its arguments, its optimiser, averaged weights,
or the network as an object. Nothing of that is executed: torch's restricted
unpickler reads the file, and each class and function that it does not know is
replaced by one that keeps what it is given and does nothing.
"""

import json
import pickle
import struct
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from foveate_train.errors import WeightsError

StateDict = dict[str, torch.Tensor]

INDICES = (".safetensors.index.json", ".bin.index.json")
"""How the names of an index end, which says in which of several files each tensor is."""

DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What torch's unpickler raises on bytes that are no torch file, or a damaged one."""

AVERAGED = ("state_dict_ema", "model_ema", "model_ema_state_dict", "ema_state_dict", "ema")
PLAIN = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
"""The keys under which training scripts keep weights, the first that is there first."""

_STUDENT, _TEACHER = "student", "teacher"
_AVERAGE_LIKENESS = 0.5
"""The least cosine between weights and their average; those of two trainings are near 0."""

_NAMING = frozenset(
    {"classes", "class_names", "labels", "label_names", "categories", "names"}
    | {"class_to_idx", "idx_to_class", "id2label", "label2id"}
)
"""The keys, in lower case, under which they keep the names of the classes."""

_SETTINGS = ("hyper_parameters", "args", "config", "meta")

_DEPTH = 3
"""How many such keys stand within each other, as in Ultralytics' {"ema": {"module": ...}}."""

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names that torch's own wrappers put before those of the modules that they wrap."""

COUNTS = "num_batches_tracked"
"""How the counters of batch normalisations end, which no answer depends on."""

_MATRIX = 2
"""The dimensions of a linear layer's weight."""

_COUNTER = "n_averaged"
"""What torch's AveragedModel adds to the state dict of the network that it averages."""


@dataclass(frozen=True)
class Found:
    """A state dict, and what to say of where it was found; empty for the plain case."""

    state: StateDict
    said: str = ""


class _Kept:
    """Stands for a class or a function of a checkpoint, and keeps the state of its object."""

    state: object = None

    def __new__(cls, *_: object) -> "_Kept":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


class _KeptDict:
    """Stands for a kind of dictionary, of which torch's unpickler fills plain ones alone."""

    def __new__(cls, *_: object) -> OrderedDict[object, object]:  # type: ignore[misc]
        return OrderedDict()


def read(path: Path) -> Found:
    """Read the weights of a .safetensors or a torch file without running anything in it.

    A name that ends in one of `INDICES` is the index of weights in several files beside it.

    Raises:
        WeightsError: the file is missing or damaged, or holds no state dict.
    """
    try:
        if path.name.endswith(INDICES):
            return _read_shards(path)
        if path.suffix == ".safetensors":
            return _whole(Found(safetensors.torch.load_file(path)))
        content = _load(path)
    except FileNotFoundError as error:
        raise WeightsError("there is no such file") from error
    except safetensors.SafetensorError as error:
        raise WeightsError(f"not a whole safetensors file ({error})") from error
    except DAMAGED as error:
        raise WeightsError(_refusal(str(error))) from error
    except OSError as error:
        raise WeightsError(error.strerror or str(error)) from error
    return _whole(find(content))


def _whole(found: Found) -> Found:
    """Return what was found; raise WeightsError where it is an adapter of other weights."""
    added = next((key for key in found.state if "lora_" in key), None)
    if added is not None:
        raise WeightsError(
            f"holds an adapter ({added}) and not the network: merge it into the network "
            "(merge_and_unload of peft) and save that"
        )
    return found


def _read_shards(index: Path) -> Found:
    """Read the tensors that an index shares out among files of its own folder."""
    try:
        places = json.loads(index.read_bytes())["weight_map"]
    except (ValueError, LookupError, TypeError) as error:
        raise WeightsError("not an index of files of weights: it has no weight_map") from error
    if not isinstance(places, dict) or not places:
        raise WeightsError("its weight_map is not a table of files by tensor")
    # Names and no paths: an index may come from anyone.
    foreign = [name for name in places.values() if not _is_shard(name)]
    if foreign:
        raise WeightsError(f"its weight_map names {foreign[0]!r}, no file of weights beside it")
    state: StateDict = {}
    for name in dict.fromkeys(places.values()):
        wanted = [key for key, place in places.items() if place == name]
        if not (index.parent / name).is_file():
            raise WeightsError(f"its file {name} is missing")
        try:
            held = read(index.parent / name).state
        except WeightsError as error:
            raise WeightsError(f"its file {name}: {error}") from error
        missing = [key for key in wanted if key not in held]
        if missing:
            raise WeightsError(f"{name} lacks {missing[0]}, which the index places there")
        state |= {key: held[key] for key in wanted}
    return Found(state, f"in {len(set(places.values()))} files")


def _is_shard(name: object) -> bool:
    return (
        isinstance(name, str)
        and name == Path(name).name
        and name.endswith((".safetensors", ".bin"))
    )


def class_names(path: Path) -> tuple[str, tuple[str, ...]] | None:
    """Return the names of the classes that a training script left beside the weights.

    Returns:
        the key that they stand under, and the names by index; None where there are none.
    """
    if path.suffix == ".safetensors" or path.name.endswith(INDICES):
        return None
    try:
        content = _load(path)
    except (OSError, *DAMAGED):
        return None
    held = _entries(content)
    for part in (held, *(_entries(held.get(key)) for key in _SETTINGS)):
        for key, value in part.items():
            names = _names(value) if str(key).lower() in _NAMING else ()
            if names:
                return str(key), names
    return None


def _entries(content: object) -> Mapping[object, object]:
    held = content.state if isinstance(content, _Kept) else content
    return held if isinstance(held, Mapping) else {}


def _names(value: object) -> tuple[str, ...]:
    """Return names by index, of a list of them or of a table in either direction."""
    if isinstance(value, list | tuple):
        return tuple(value) if all(isinstance(each, str) for each in value) else ()
    table = _entries(value)
    by_index = {
        int(str(index)): str(name)
        for pair in table.items()
        for index, name in (pair, pair[::-1])
        if str(index).isdecimal() and isinstance(name, str)
    }
    complete = len(by_index) == len(table) and sorted(by_index) == list(range(len(table)))
    return tuple(by_index[index] for index in range(len(table))) if complete else ()


def _load(path: Path) -> object:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except DAMAGED as error:
        if "torchscript" in str(error):
            raise WeightsError(
                "a TorchScript archive, which is a program and is not run; save the state dict of "
                "the network that it was made of"
            ) from error
        # The form before torch 1.6, in which the names cannot be listed beforehand.
        names = ["argparse.Namespace"]
    try:
        return _load_with(path, {name: name.lower().endswith("dict") for name in names})
    except pickle.UnpicklingError as error:
        if "Can only SETITEM" not in str(error):
            raise
        # Some dictionary is not called one.
        return _load_with(path, dict.fromkeys(names, True))


def _load_with(path: Path, names: Mapping[str, bool]) -> object:
    """Read a file in which each of `names` stands for a dictionary, or for anything else."""
    stand_ins = [(_KeptDict if is_dict else _Kept, name) for name, is_dict in names.items()]
    with torch.serialization.safe_globals(list(stand_ins)):
        return torch.load(path, map_location="cpu", weights_only=True)


def _refusal(message: str) -> str:
    """Return in one line why torch does not read a file."""
    _, named, rest = message.partition("GLOBAL ")
    if named:
        return f"holds {rest.split()[0]}, which is code and is not run; save the state dict alone"
    return "not a torch file of tensors, or a damaged one (it is read with weights_only)"


def find(content: object) -> Found:
    """Find the state dict in what a checkpoint holds.

    Raises:
        WeightsError: there is none; says what there is.
    """
    taught = _taught(content)
    if taught is not None:
        return taught
    keys, state = _search(content, _DEPTH)
    if state is None:
        raise WeightsError(
            f"holds no state dict: {_described(content)}; save that of the network, as "
            'torch.save(network.state_dict(), "FILE") does'
        )
    averaged = [key for key in keys if key in AVERAGED]
    said = f"under {'.'.join(keys)}" if keys else ""
    if averaged:
        said += ", the averaged weights (EMA)"
    return Found(state, said)


def _taught(content: object) -> Found | None:
    """Find the network in what self-distillation (DINO) or distillation leaves; None elsewhere.

    The teacher of self-distillation is the average of the student, and is taken. That of
    distillation is another network, and the student is what was trained.

    Raises:
        WeightsError: both have one shape, and neither is the average of the other.
    """
    if not isinstance(content, Mapping):
        return None
    (_, student), (_, teacher) = (
        _search(content.get(key), _DEPTH - 1) for key in (_STUDENT, _TEACHER)
    )
    if not student:
        return None
    if not teacher:
        return Found(student, f"under {_STUDENT}")
    ours, theirs = (
        [value for value in state.values() if value.ndim > 1] for state in (student, teacher)
    )
    if [value.shape for value in ours] != [value.shape for value in theirs]:
        return Found(student, f"under {_STUDENT}, which another network taught")
    first, second = (
        torch.cat([value.flatten().float() for value in each]) for each in (ours, theirs)
    )
    if torch.cosine_similarity(first, second, dim=0) < _AVERAGE_LIKENESS:
        raise WeightsError(
            f"holds a {_STUDENT} and a {_TEACHER} of one shape, and neither is the average of the "
            "other; save the state dict of one"
        )
    return Found(teacher, f"under {_TEACHER}, the averaged weights (EMA) of the {_STUDENT}")


def _search(content: object, depth: int) -> tuple[tuple[str, ...], StateDict | None]:
    """Return the keys that lead to the state dict within `content`, and it."""
    state = _as_state(content)
    if state or depth == 0 or not isinstance(content, Mapping):
        return (), state
    for key in (*AVERAGED, *PLAIN):
        keys, state = _search(content.get(key), depth - 1)
        if state:
            return (key, *keys), state
    return (), None


def _as_state(content: object) -> StateDict | None:
    if isinstance(content, _Kept):
        return dict(_tensors_of(content, ""))
    if not isinstance(content, Mapping) or not content:
        return None
    tensors = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    # State dicts of some modules hold more, under keys such as "_extra_state".
    others = [key for key in content if key not in tensors]
    plain = all(isinstance(key, str) and key.endswith("_extra_state") for key in others)
    return tensors if tensors and plain else None


def _tensors_of(module: _Kept, prefix: str) -> Iterable[tuple[str, torch.Tensor]]:
    """Yield the state dict of an nn.Module that was saved as an object."""
    held = module.state
    if not isinstance(held, Mapping):
        return
    passing = held.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in (held.get(kind) or {}).items():
            if isinstance(value, torch.Tensor) and name not in passing:
                yield prefix + name, value
    for name, child in (held.get("_modules") or {}).items():
        if isinstance(child, _Kept):
            yield from _tensors_of(child, f"{prefix}{name}.")


def _described(content: object) -> str:
    if isinstance(content, Mapping):
        keys = [str(key) for key in content]
        more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
        return f"its keys are {', '.join(keys[:6])}{more}" if keys else "it is empty"
    return "it is an object of a class" if isinstance(content, _Kept) else type(content).__name__


def fit_names(found: Found, wanted: Mapping[str, torch.Tensor]) -> Found:
    """Take off what wrappers put before the names of a network's tensors.

    Everything under the prefix is kept, for the comparison with the network;
    what lies beside it is another part of what was trained, such as a loss.

    Args:
        found: as it was read.
        wanted: the network's own state dict.

    Raises:
        WeightsError: two parts of it fit the network, and none is the average.
    """
    state = {_unwrapped(key): value for key, value in found.state.items()}
    if _COUNTER not in wanted:
        state.pop(_COUNTER, None)
    prefix = _prefix(state, wanted)
    if not prefix:
        return _fit_head(Found(state, found.said), {}, wanted)
    kept = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
    beside = {key: value for key, value in state.items() if not key.startswith(prefix)}
    said = [found.said, f"the prefix {prefix!r} taken off"]
    if _is_averaged(prefix):
        said.append("the averaged weights (EMA)")
    fitted = _fit_head(Found(kept), beside, wanted)
    left = [key for key in beside if not any(beside[key] is each for each in fitted.state.values())]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        said.append(f"{left[0]}{more} beside it left out")
    said.append(fitted.said)
    return Found(fitted.state, ", ".join(filter(None, said)))


def _fit_head(found: Found, beside: StateDict, wanted: Mapping[str, torch.Tensor]) -> Found:
    """Give the one linear layer that is wanting and the one that is over the same name.

    Training scripts put a dropout before a head, which renames it (`fc.1`), or write a head of
    their own beside the network (`classifier`). A head without a bias has one of zeros.

    Args:
        found: the state dict as far as it has the network's names.
        beside: what else the file holds, where a prefix was taken off the network's.
        wanted: the network's own state dict.
    """
    over = {key: value for key, value in found.state.items() if key not in wanted}
    source = over or beside
    lacking = _linear({key: wanted[key] for key in _missing(found.state, wanted)})
    given = _linear(source)
    state, said = found.state, [found.said]
    if lacking and given and _same_head(source, given, wanted, lacking):
        own = {
            key.replace(given, lacking, 1): value
            for key, value in source.items()
            if key.startswith(f"{given}.")
        }
        state = {key: value for key, value in state.items() if key not in over} | own
        said.append(f"its layer {given} taken for {lacking}")
    bias, *others = _missing(state, wanted) or ("",)
    weight = state.get(f"{bias.removesuffix('bias')}weight")
    if not others and bias.endswith(".bias") and weight is not None and weight.ndim == _MATRIX:
        state = {**state, bias: weight.new_zeros(len(weight))}
        said.append(f"zeros for {bias}, which it lacks")
    return Found(state, ", ".join(filter(None, said)))


def _missing(state: StateDict, wanted: Mapping[str, torch.Tensor]) -> list[str]:
    return [key for key in wanted if key not in state and not key.endswith(COUNTS)]


def _same_head(
    source: StateDict, given: str, wanted: Mapping[str, torch.Tensor], lacking: str
) -> bool:
    """Tell whether a linear layer can be the network's head: its columns, and its name or bias.

    The weight of a loss, such as ArcFace's, has the columns too, but neither of the others.
    """
    columns = source[f"{given}.weight"].shape[1] == wanted[f"{lacking}.weight"].shape[1]
    within = f"{given}.".startswith(f"{lacking}.") or f"{lacking}.".startswith(f"{given}.")
    return columns and (within or f"{given}.bias" in source)


def _linear(part: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of the linear layer that `part` of a state dict is, if it is one."""
    names = {key.rpartition(".")[0] for key in part}
    kinds = {key.rpartition(".")[2] for key in part}
    if len(names) != 1 or "weight" not in kinds or not kinds <= {"weight", "bias"}:
        return None
    name = names.pop()
    return name if part[f"{name}.weight"].ndim == _MATRIX else None


def _unwrapped(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _prefix(state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str:
    """Return the prefix under which most of the wanted names stand; "" where fewer than half do."""
    counts: dict[str, int] = {}
    # A name may end in another, as layer1.0.weight in 0.weight, so every ending counts.
    for key in state:
        parts = key.split(".")
        for index in range(len(parts)):
            if ".".join(parts[index:]) in wanted:
                prefix = "".join(f"{part}." for part in parts[:index])
                counts[prefix] = counts.get(prefix, 0) + 1
    most = max(counts.values(), default=0)
    best = [prefix for prefix, count in counts.items() if count == most]
    if "" in best or 2 * most < len(wanted):
        return ""
    chosen = [prefix for prefix in best if _is_averaged(prefix)] if len(best) > 1 else best
    if len(chosen) != 1:
        named = " and ".join(repr(prefix) for prefix in best)
        raise WeightsError(f"the parts {named} fit the network; save the state dict of one")
    return chosen[0]


def _is_averaged(prefix: str) -> bool:
    return any("ema" in part.split("_") or part == "averaged" for part in prefix.split("."))
