"""What Flask runs on: the event loop, pipes for long bodies, routing."""
