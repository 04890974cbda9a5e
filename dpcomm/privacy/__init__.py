"""The private step's parts: clip, noise, sampling."""
