"""Charts and text as Pillow images."""
