"""Systems that bring one message to thousands of clients: each with its server, and with lean clients that are all made in the same way."""
