"""What a learner looks at: pictures and panels of live state. Each has a text twin and a repr that stays the same."""
