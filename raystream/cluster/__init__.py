"""Ray: the connection, the pool of actors that score, the actors that hold candidates. Only this room and `service` import ray."""
