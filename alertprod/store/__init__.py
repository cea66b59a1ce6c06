"""What is kept: images, templates, the SQL database and the outbox."""
