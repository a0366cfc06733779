"""An advertising engine that runs a user's campaign while the user's balance is positive. It shows how to receive events.

It is an independent program: it uses the payment service's HTTP API and imports none of its code.
"""
