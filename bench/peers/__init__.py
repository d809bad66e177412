"""The other tools of `bench.compare`: an environment and a worker process each, and our own worker beside them."""
