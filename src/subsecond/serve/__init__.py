"""The HTTP server: wire formats of several APIs over one way to answer; knows engines, no kernels."""
