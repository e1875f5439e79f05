"""A report: one HTML page with every picture of a run, its maps, and the confusions.

It is part of the client because the overlays are drawn here, and because the command
`foveate` belongs to this distribution: wherever `foveate evaluate` runs, the client is
installed. foveate-runtime may not import it, and finds `PlainReport` through the entry
point group `foveate.reports`, as it finds data sets. It passes arrays and numbers.
"""

from foveate_client.report.plain import PlainReport

__all__ = ["PlainReport"]
