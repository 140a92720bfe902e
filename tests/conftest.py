"""For all tests."""

import hypothesis

# A busy machine is not a failure: what must be fast has its own, explicit, deadline.
hypothesis.settings.register_profile("labkit", deadline=None)
hypothesis.settings.load_profile("labkit")
