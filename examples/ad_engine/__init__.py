"""An advertising engine: it runs a user's campaign while the balance is positive, and shows how to receive events.

It is an independent program: it uses the payment service's HTTP API and imports none of its code.
"""
