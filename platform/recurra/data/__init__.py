"""Arrow shards, manifest, plan, reader, batches. Uses numpy and pyarrow: no torch, no Ray."""
