"""The board: one live page per site. Server-rendered first, then kept up to date by server-sent events."""
