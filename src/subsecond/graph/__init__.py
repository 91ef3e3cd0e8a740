"""The intermediate representation of a model and the passes over it; knows no file, no backend and no request."""
