"""labkit inside other frameworks: Flask, FastAPI, scheduled jobs. Each module needs the extra of its name."""
