"""Clusters: the embedded one (a server and workers as child processes of a guard), and what they are made of."""
