"""Peers: networks that map pixels to masks, on the manifest, views and metrics of any other run."""
