"""The views: one function per operation of the API."""
