"""What people do with a trained network: predict on their own pictures, and take the network elsewhere."""
