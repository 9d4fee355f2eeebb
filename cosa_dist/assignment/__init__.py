"""What the assignment network gives the online network: views of images as pseudo-labels."""
