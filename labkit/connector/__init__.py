"""From settings to one open Pika connection: all hosts, all addresses, one deadline."""
