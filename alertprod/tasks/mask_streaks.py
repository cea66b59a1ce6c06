"""Satellite trails, under the field's configuration names."""

from typing import ClassVar

import numpy as np

from alertprod.detection.streaks import StreakConfig, find_streaks
from alertprod.images.exposure import Exposure
from alertprod.images.masked_image import MaskedImage
from alertprod.tasks.config_fields import make_config_class
from alertprod.tasks.task import Struct, Task, timeMethod

MaskStreaksConfig = make_config_class(
    "MaskStreaksConfig", StreakConfig, renamed={"n_sigma_mask": "nSigmaMask", "excluded_planes": "badMaskPlanes"}
)
MaskStreaksConfig.__module__ = __name__


class MaskStreaksTask(Task):
    """Mark the trails of satellites on a difference."""

    ConfigClass = MaskStreaksConfig
    _DefaultName: ClassVar[str] = "maskStreaks"

    @timeMethod
    def run(self, exposure: Exposure | MaskedImage) -> Struct:
        """Find trails and set the STREAK plane; bits that are there stay.

        Parameters
        ----------
        exposure
            A difference, or its planes; only its mask is changed.

        Returns
        -------
        Struct
            mask: True on the trails over their whole way across the image, shape of the image; lines: tuple of
            `alertprod.detection.streaks.Streak`, the most significant first.
        """
        planes = exposure.masked_image if isinstance(exposure, Exposure) else exposure
        found = find_streaks(planes, config=self.config.makeSettings(), set_planes=True)
        fraction = float(np.count_nonzero(found.mask) / found.mask.size)
        self.metadata.update(nStreaks=len(found.lines), streakMaskFraction=fraction)
        for line in found.lines:
            self.log.info(
                "trail from (%.0f, %.0f) to (%.0f, %.0f), %.1f pixels wide, significance %.1f",
                line.x0, line.y0, line.x1, line.y1, 2.0 * line.half_width, line.significance,
            )  # fmt: skip
        return Struct(mask=found.mask, lines=found.lines)
