"""Locks, wake-ups and threads that no interrupt, signal handler or fork can break. No Pika, no I/O."""
