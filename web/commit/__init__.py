"""Requests that wait for Postgres together: the group commit, the commit of lists, the long poll."""
