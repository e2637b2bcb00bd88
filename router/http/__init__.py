"""HTTP as clients and operators meet it: the connection, the porch, the endpoints and their description."""
