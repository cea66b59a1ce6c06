import pytest

from alertprod.errors import ConfigError
from alertprod.subtraction.config import AlardLuptonConfig, DeltaFunctionConfig


@pytest.mark.parametrize("made", [AlardLuptonConfig, DeltaFunctionConfig])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kernel_size", 20),
        ("kernel_size_min", 1),
        ("kernel_size_min", 41),
        ("fwhm_exposure_grid", 0),
        ("fwhm_exposure_buffer", 0.5),
        ("spatial_kernel_order", -1),
        ("spatial_bg_order", -1),
        ("size_cell_x", 16),
        ("size_cell_y", 31),
        ("num_principal_components", 2),
        ("max_condition_number", 0.5),
        ("max_spatial_condition_number", float("nan")),
        ("max_spatial_iterations", 6),
        ("min_kernel_sources", 0),
        ("n_threads", 0),
        ("bad_mask_planes", ("BAD", "NOPE")),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(made, field, value):
    with pytest.raises(ConfigError) as caught:
        made(**{field: value})
    assert caught.value.field == field
    assert caught.value.source == made.__name__


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_bic_for_kernel_basis", True),
        ("central_regularization_stencil", 7),
        ("forward_regularization_orders", (1, 4)),
        ("forward_regularization_orders", ()),
        ("regularization_border_penalty", -1.0),
        ("lambda_value", -0.1),
        ("lambda_scaling", -1e-4),
        ("lambda_step", 0.0),
        ("lambda_max", -2.0),
    ],
)
def test_a_regularisation_that_makes_no_sense_is_refused(field, value):
    with pytest.raises(ConfigError):
        DeltaFunctionConfig(**{field: value})


def test_a_linear_scan_does_not_begin_below_zero():
    with pytest.raises(ConfigError, match="lambda_min"):
        DeltaFunctionConfig(lambda_step_type="linear")
    DeltaFunctionConfig(lambda_step_type="linear", lambda_min=0.0)


def test_lists_have_a_value_for_each_gaussian():
    with pytest.raises(ConfigError, match="alard_sig_gauss"):
        AlardLuptonConfig(alard_n_gauss=2, alard_deg_gauss=(4, 2))
