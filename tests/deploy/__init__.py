"""What is deployed is true to the code: the image, docker compose, Kubernetes, alerts."""
