"""What others ask of their own clients, asked of labkit: their themes, our tests. Part of `make soak`."""
