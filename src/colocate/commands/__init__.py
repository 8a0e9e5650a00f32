"""What is typed: a module a command, but for those of tiling, prepare, evaluate and predict, which stand there."""
