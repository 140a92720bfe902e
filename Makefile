# Each target is one call of bootstrap.py, which needs nothing but Python: on Windows, type `python bootstrap.py lab`.
PYTHON ?= python3

.PHONY: lab test check soak clean
lab test check soak:
	@$(PYTHON) bootstrap.py $@ $(ARGS)

clean:
	@$(PYTHON) bootstrap.py clean
