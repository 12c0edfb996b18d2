"""The process that clients talk to: bare ASGI, long polls parked in memory, the database only when something happens."""
