"""What Alembic runs around the revisions: on the connection it is given, or offline, to write SQL."""

from alembic import context

from adapters.schema import REVISION_TABLE, metadata

given = context.config.attributes
if context.is_offline_mode():
    context.configure(url=given["url"], target_metadata=metadata, version_table=REVISION_TABLE, literal_binds=True)
else:
    context.configure(connection=given["connection"], target_metadata=metadata, version_table=REVISION_TABLE)
with context.begin_transaction():
    context.run_migrations()
