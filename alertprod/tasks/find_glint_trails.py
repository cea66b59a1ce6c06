"""Glint trails, under the field's configuration names."""

from typing import ClassVar

from alertprod._typing import FloatArray
from alertprod.detection.glints import GlintTrailConfig, find_glint_trails
from alertprod.tasks.config_fields import make_config_class
from alertprod.tasks.task import Struct, Task, timeMethod

FindGlintTrailsConfig = make_config_class(
    "FindGlintTrailsConfig", GlintTrailConfig, renamed={"max_rms": "threshold", "min_points": "min_points"}
)
FindGlintTrailsConfig.__module__ = __name__


class FindGlintTrailsTask(Task):
    """Find detections that lie in a row."""

    ConfigClass = FindGlintTrailsConfig
    _DefaultName: ClassVar[str] = "findGlints"

    @timeMethod
    def run(self, *, x: FloatArray, y: FloatArray) -> Struct:
        """Look for rows among positions.

        Parameters
        ----------
        x, y
            Of the DiaSources, shape ``(n,)``, pixels; leave out what is known to be a dipole or sky.

        Returns
        -------
        Struct
            isGlint: bool, shape ``(n,)``; trails: tuple of `GlintTrail`.
        """
        found = find_glint_trails(x=x, y=y, config=self.config.makeSettings())
        self.metadata.update(n_trails=len(found.trails), n_glint_sources=int(found.is_glint.sum()))
        return Struct(isGlint=found.is_glint, trails=found.trails)
