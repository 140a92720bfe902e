"""What a message carries, to be sent and as received. No Pika connection, no I/O."""
