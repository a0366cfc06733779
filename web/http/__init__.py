"""HTTP requests and responses: bodies, parameters, cursors, problem documents."""
