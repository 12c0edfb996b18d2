"""What switches clients on: relays that send wake packets, and power ports. ``agents.waking`` says when."""
