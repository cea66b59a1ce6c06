"""What gave a reliability, whether a trail's fit failed, which objects are followed; regions read from an index alone.

Objects that are there already are followed as they were: their latest good source but one is looked up, by the rules of
this revision (reliability 0.5, trails up to 1.4 arcsec, no glint, no dipole).
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and fill them in for the rows there are."""
    op.add_column("dia_source", sa.Column("trail_flag", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("dia_source", sa.Column("reliability_version", sa.Text()))
    op.add_column("dia_object", sa.Column("repeated_mjd_tai", sa.Double()))
    op.execute(
        """
        UPDATE dia_object SET repeated_mjd_tai = (
            SELECT midpoint_mjd_tai FROM dia_source
            WHERE dia_source.dia_object_id = dia_object.dia_object_id
            AND NOT glint_trail AND NOT is_dipole
            AND (reliability IS NULL OR reliability >= 0.5)
            AND (trail_length_arcsec IS NULL OR trail_length_arcsec <= 1.4)
            ORDER BY midpoint_mjd_tai DESC LIMIT 1 OFFSET 1
        )
        """
    )
    op.drop_index("dia_object_in_cell", "dia_object")
    op.create_index(
        "dia_object_in_cell",
        "dia_object",
        [
            "cell",
            "dia_object_id",
            "ra_deg",
            "ra_err_deg",
            "dec_deg",
            "dec_err_deg",
            "ra_dec_cov_deg2",
            "first_dia_source_mjd_tai",
            "last_dia_source_mjd_tai",
            "repeated_mjd_tai",
        ],
    )
