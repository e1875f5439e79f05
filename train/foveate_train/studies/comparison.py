"""Studies that train variants of one network and compare their accuracies by epoch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from foveate_train.classifier import Argument
from foveate_train.settings import Settings


@dataclass(frozen=True)
class Variant:
    """One network of a comparison.

    Attributes:
        title: how tables and curves name it.
        arguments: what the classifier is built with.
        published: test accuracy in percent, by epoch, where it was published.
    """

    title: str
    arguments: Mapping[str, Argument]
    published: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A study that compares variants.

    Attributes:
        name: as the command line knows it.
        title: the heading of its page.
        question: what is compared and what was found before, in Markdown.
        setting: what of the training is not published, and what it takes to
            see the finding, in Markdown.
        why: what the sizes of the gradients explain, in Markdown.
        classifier: the network's name in the registry.
        variants: by name.
        settings: of every variant's training.
    """

    name: str
    title: str
    question: str
    setting: str
    why: str
    classifier: str
    variants: Mapping[str, Variant]
    settings: Settings
