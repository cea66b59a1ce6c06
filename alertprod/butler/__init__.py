"""Rubin's middleware: the package's exposures and tables in a Butler, its task in a pipeline. Needs the extra ``lsst``.

Nothing imports this but entry points and the factory; nothing else imports Rubin's middleware.
"""

EXPOSURE, CATALOG = "AlertprodExposure", "AlertprodCatalog"
"""The storage classes of `alertprod.images.exposure.Exposure` and `alertprod.measurement.catalog.Catalog`."""

__all__ = ["CATALOG", "EXPOSURE"]
