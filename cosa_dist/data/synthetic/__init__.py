"""Generated pictures of shapes and textures with masks."""
