"""What a model is for: schema of an example, loss, metrics, encoding of requests and decoding of answers."""
