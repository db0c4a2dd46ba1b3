"""Where to split and whom to serve: latency and accuracy models, the problem, its solvers."""
