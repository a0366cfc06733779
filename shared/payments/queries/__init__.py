"""All SQL of the service: one file for each noun, each statement with a name. Queries never commit."""
