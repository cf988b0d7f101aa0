"""From files of pictures and sound to graph inputs."""
