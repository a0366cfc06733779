"""Webhooks: their owners' requests, what they are sent, and how it is delivered."""
