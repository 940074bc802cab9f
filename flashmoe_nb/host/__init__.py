"""What the host does for a kernel, from its text to its launch; `flashmoe_nb.cuda` is the door."""
