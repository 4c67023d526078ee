# First of all, so that the model classes are registered (see loki/__init__.py) before a module here is half imported.
import transformers  # noqa: F401
