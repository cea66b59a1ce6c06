"""The shells that carry the field's names."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alertprod.tasks.image_difference import ImageDifferenceConfig, ImageDifferenceTask

__all__ = ["ImageDifferenceConfig", "ImageDifferenceTask"]


def __getattr__(name: str) -> Any:
    # Late: whoever needs one small module of this package shall not pay for all of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from alertprod.tasks import image_difference

    return getattr(image_difference, name)
