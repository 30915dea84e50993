"""Model bundles and aliases in the object store, with an append-only history."""
