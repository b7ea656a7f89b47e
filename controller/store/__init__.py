"""Where the state lives: a port, SQL (SQLAlchemy) and memory behind it."""
