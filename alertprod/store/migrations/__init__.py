"""Versions of the database schema, run by alembic through `alertprod.store.database`."""
