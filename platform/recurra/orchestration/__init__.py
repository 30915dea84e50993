"""Submit, follow and stop jobs; local clusters; manifests of Ray Serve and KubeRay from the job file."""
