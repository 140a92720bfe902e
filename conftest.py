"""Hand pytest the plugin that notebooks need. The hooks are in a module so that they can be tested themselves."""

pytest_plugins = ["labkit.lab.pytest_plugin"]
