"""What alembic runs: the migrations, on the connection that `Database.upgrade` hands over.

There is no offline mode and no alembic.ini: `alertprod db upgrade` is the one way in.
"""

from alembic import context

from alertprod.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    # SQLite can roll DDL back when the transaction was opened by hand, as it is: all of an upgrade or nothing.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
