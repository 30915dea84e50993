"""Engine (step batching), sessions, messages, app, deployment and client."""
