"""Models of other libraries, with the modules of this one in them."""
