"""`foveate export FILE.onnx` where the file's head has to be differentiated, which needs torch."""

from collections.abc import Sequence
from typing import Any

from foveate_export.anatomy.ending import probes
from foveate_export.anatomy.logits import as_logits
from foveate_export.errors import ExportError, UsageError
from foveate_export.existing.network import as_classifier, module_name
from foveate_export.existing.source import Existing
from foveate_export.exporter import examine, export
from foveate_export.pictures import Pictures
from foveate_export.progress import Stage
from foveate_export.publish.bundle import Exported
from foveate_runtime.bundle.manifest import Scores
from foveate_runtime.bundle.publishing import RepositoryError


def export_differentiated(
    source: Existing,
    labels: Sequence[str],
    pictures: Pictures,
    *,
    scores: Scores | None,
    where: Any,
    stage: Stage,
) -> tuple[Exported | None, str]:
    """Export the file as the network of torch that it is; or say why its head gives no maps.

    Args:
        source: the file, not yet edited.
        labels: the name of each class.
        pictures: what is compared.
        scores: what makes scores of its outputs; None to find it.
        where: the repository, the name, the version and the layers, a named tuple.
        stage: called for each step, to show progress.
    """
    try:
        with stage("running the file in torch"):
            classifier = as_classifier(source, tuple(labels), pictures)
            classifier, ending = as_logits(classifier, probes(pictures, source.spec), scores)
            anatomy = examine(classifier)
    except ExportError as error:
        return None, f"in torch, {error}"
    if anatomy.head is None:
        return None, f"in torch, {(anatomy.note or '').partition(': ')[2]}"
    if where.layers is not None:
        where = where._replace(layers=[module_name(layer) for layer in where.layers])
    try:
        exported = export(
            classifier,
            pictures=pictures,
            ending=ending,
            anatomy=anatomy,
            stage=stage,
            **where._asdict(),
        )
    except (RepositoryError, UsageError):
        raise
    except ExportError as error:
        return None, f"in torch, {error}"
    return exported, ""
