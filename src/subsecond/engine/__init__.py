"""Turn requests into steps of a backend and the sampled tokens into streams; knows neither weights nor HTTP."""
