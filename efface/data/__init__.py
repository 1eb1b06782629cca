"""From benchmark files to samples, and from samples to model inputs."""
