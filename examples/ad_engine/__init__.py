"""An advertising engine that runs a user's campaign only while there is money: what a receiver of events looks like.

A program of its own. It knows the payment service's HTTP contract and nothing of its code.
"""
