"""Who may send a request, and how many at once."""
