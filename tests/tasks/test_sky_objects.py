"""`SkyObjectsTask`: the shell about `place_sky_footprints`."""

import numpy as np
import pytest
from lsst.pex.config import FieldValidationError

from alertprod.images.mask import plane_bits
from alertprod.tasks.sky_objects import SkyObjectsConfig, SkyObjectsTask


def test_sources_are_placed_counted_and_marked_as_sky():
    task = SkyObjectsTask()
    footprints = task.run(np.zeros((300, 400), np.int32), 12345)
    assert len(footprints) == task.metadata["nSkySources"] == 100
    assert footprints.is_sky.all()
    np.testing.assert_array_equal(task.run(np.zeros((300, 400), np.int32), 12345).pixels, footprints.pixels)


def test_number_radius_and_planes_to_avoid_are_configured():
    config = SkyObjectsConfig()
    config.nSources, config.sourceRadius, config.avoidMask = 5, 3.0, ["SUSPECT"]
    mask = np.zeros((200, 200), np.int32)
    mask[:, :150], mask[:, 150:] = plane_bits("SUSPECT"), plane_bits("BAD")
    footprints = SkyObjectsTask(config).run(mask, 1)
    assert len(footprints) == 5
    assert (footprints.x >= 153).all()


def test_planes_that_do_not_exist_are_refused():
    config = SkyObjectsConfig()
    config.avoidMask = ["NOTHING"]
    with pytest.raises(FieldValidationError, match="NOTHING"):
        config.validate()


def test_fewer_than_wanted_are_given_where_there_is_no_room():
    task = SkyObjectsTask()
    assert len(task.run(np.zeros((40, 40), np.int32), 1)) == task.metadata["nSkySources"] < 100
