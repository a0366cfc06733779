"""All SQL of webhooks, one file per noun, each statement named. Queries never commit."""
