"""All SQL of the service, a file per noun, each statement named. Queries never commit."""
