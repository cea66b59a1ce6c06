"""The variant of `ImageDifferenceTask` whose quanta bring a template that was built before."""

from typing import Any, ClassVar

from alertprod.images.exposure import Exposure
from alertprod.tasks.image_difference import ImageDifferenceTask
from alertprod.tasks.image_difference_config import ImageDifferenceConfig
from alertprod.tasks.protocols import QuantumContext


class ImageDifferenceFromTemplateConfig(ImageDifferenceConfig):
    """The same, for templates of the sharpest exposures."""

    def setDefaults(self) -> None:
        """Name the datasets after those coadds."""
        super().setDefaults()
        self.coaddName = "goodSeeing"


class ImageDifferenceFromTemplateTask(ImageDifferenceTask):
    """Subtract a template that is on the exposure's pixels already; detect and measure what is left."""

    ConfigClass = ImageDifferenceFromTemplateConfig
    _DefaultName: ClassVar[str] = "imageDifferenceFromTemplate"

    def _getQuantumTemplate(self, exposure: Exposure, butlerQC: QuantumContext, inputRefs: Any) -> Exposure:
        del exposure
        template: Exposure = butlerQC.get(inputRefs.inputTemplate)
        return template
