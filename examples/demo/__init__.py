"""The main job on real input: embed a folder, answer questions about it, survive a dying host."""
